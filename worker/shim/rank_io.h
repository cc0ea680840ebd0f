// What comes out of one rank goes into files: two output streams, which lose their oldest waiting
// bytes when the disk stays full, and its frames, which never lose any. Standard library only.
#ifndef SWITCHYARD_WORKER_SHIM_RANK_IO_H_
#define SWITCHYARD_WORKER_SHIM_RANK_IO_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "worker/shim/attempt_files.h"

namespace switchyard {

// Appends one stream of bytes to a file, and holds what the file will not take.
class FileAppender {
 public:
  FileAppender() = default;
  ~FileAppender();
  FileAppender(FileAppender&&) = delete;

  // Creates `path`. 0 or errno.
  int Open(const std::string& path);
  void Append(std::string_view data);
  // Tries again to write what waits. False: something still waits.
  bool Flush();
  // Drops the oldest waiting bytes but `keep`. Returns how many: they are missing between
  // `written()` and what is written next.
  uint64_t DropAllBut(size_t keep);

  // The place in the stream up to which it is in the file, dropped bytes counted.
  uint64_t written() const { return written_; }
  size_t waiting_bytes() const { return waiting_.size(); }
  void Sync() const;

 private:
  int fd_ = -1;
  uint64_t written_ = 0;
  std::string waiting_;
};

// One output pipe of a rank.
class OutputStream {
 public:
  // Most bytes that wait in memory for disk space.
  static constexpr size_t kMaxWaitingBytes = 1 << 20;

  OutputStream() = default;
  ~OutputStream() { Close(); }
  OutputStream(OutputStream&&) = delete;

  // `pipe`: non-blocking, taken over. 0 or errno of creating the file.
  int Open(int pipe, const std::string& path, StreamStatus* status);
  // Takes what the pipe holds, at most about `max_bytes`. True: there was something, or the end.
  bool Drain(size_t max_bytes);
  // Tries again to write what waits. False: the disk is still full.
  bool Flush();
  // Gives up on what is still to come.
  void Close();
  int fd() const { return pipe_; }
  bool at_end() const { return pipe_ < 0; }
  bool waits() const { return file_.waiting_bytes() > 0; }
  void Sync() const { file_.Sync(); }

 private:
  void Publish();

  int pipe_ = -1;
  FileAppender file_;
  StreamStatus* status_ = nullptr;
  uint64_t gap_begin_ = 0;  // of bytes dropped and not yet published
  uint64_t gap_bytes_ = 0;
};

// The shim's end of one rank's link.
class RankLink {
 public:
  // Most bytes of frames that wait in memory for disk space; beyond it the rank waits.
  static constexpr size_t kMaxWaitingBytes = 64 << 20;

  RankLink() = default;
  ~RankLink() { Close(); }
  RankLink(RankLink&&) = delete;

  int Open(int socket, const std::string& path, std::atomic<uint64_t>* size);
  // `json` as one frame, after what was queued before.
  void Queue(std::string_view json);
  bool Drain(size_t max_bytes);
  bool Flush();
  // Writes what the socket takes of the queue.
  void Write();
  void Close();
  int fd() const { return socket_; }
  bool at_end() const { return socket_ < 0; }
  bool wants_read() const { return file_.waiting_bytes() < kMaxWaitingBytes; }
  bool wants_write() const { return !queue_.empty(); }
  bool waits() const { return file_.waiting_bytes() > 0; }
  void Sync() const { file_.Sync(); }

 private:
  int socket_ = -1;
  FileAppender file_;
  std::atomic<uint64_t>* size_ = nullptr;
  std::string queue_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_SHIM_RANK_IO_H_
