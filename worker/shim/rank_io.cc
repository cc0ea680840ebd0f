#include "worker/shim/rank_io.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

namespace switchyard {

// ---- FileAppender ----

FileAppender::~FileAppender() {
  if (fd_ >= 0) ::close(fd_);
}

int FileAppender::Open(const std::string& path) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  return fd_ >= 0 ? 0 : errno;
}

void FileAppender::Append(std::string_view data) {
  waiting_.append(data);
  Flush();
}

bool FileAppender::Flush() {
  size_t done = 0;
  while (done < waiting_.size()) {
    const ssize_t n = ::pwrite(fd_, waiting_.data() + done, waiting_.size() - done,
                               static_cast<off_t>(written_ + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;  // a full or failing disk: the bytes wait
    done += static_cast<size_t>(n);
  }
  waiting_.erase(0, done);
  written_ += done;
  return waiting_.empty();
}

uint64_t FileAppender::DropAllBut(size_t keep) {
  if (waiting_.size() <= keep) return 0;
  const size_t dropped = waiting_.size() - keep;
  waiting_.erase(0, dropped);
  written_ += dropped;
  return dropped;
}

void FileAppender::Sync() const {
  if (fd_ >= 0) ::fdatasync(fd_);
}

// ---- OutputStream ----

int OutputStream::Open(int pipe, const std::string& path, StreamStatus* status) {
  pipe_ = pipe;
  status_ = status;
  return file_.Open(path);
}

void OutputStream::Publish() {
  if (gap_bytes_ > 0 && file_.waiting_bytes() == 0) {
    // The last place is for all gaps that have none of their own: it grows over what lies between.
    const uint32_t count = status_->num_gaps.load();
    const uint32_t at = std::min<uint32_t>(count, StreamStatus::kMaxGaps - 1);
    if (at == count) {
      status_->gaps[at].begin.store(gap_begin_);
    }
    status_->gaps[at].end.store(gap_begin_ + gap_bytes_);
    status_->num_gaps.store(at + 1);
    gap_bytes_ = 0;
  }
  if (gap_bytes_ == 0) status_->size.store(file_.written());
}

bool OutputStream::Drain(size_t max_bytes) {
  char buffer[64 << 10];
  bool any = false;
  for (size_t taken = 0; pipe_ >= 0 && taken < max_bytes;) {
    const ssize_t n = ::read(pipe_, buffer, sizeof(buffer));
    if (n > 0) {
      any = true;
      taken += static_cast<size_t>(n);
      file_.Append(std::string_view(buffer, static_cast<size_t>(n)));
      if (file_.waiting_bytes() > kMaxWaitingBytes) {
        const uint64_t begin = file_.written();
        const uint64_t dropped = file_.DropAllBut(kMaxWaitingBytes / 2);
        // Bytes between two losses of one full disk were written meanwhile, or are lost with them.
        if (gap_bytes_ == 0) gap_begin_ = begin;
        gap_bytes_ = begin + dropped - gap_begin_;
      }
    } else if (n == 0) {
      Close();
      any = true;
    } else if (errno == EAGAIN) {
      break;
    } else if (errno != EINTR) {
      Close();
      any = true;
    }
  }
  Publish();
  return any;
}

bool OutputStream::Flush() {
  const bool done = file_.Flush();
  Publish();
  return done;
}

void OutputStream::Close() {
  if (pipe_ >= 0) ::close(pipe_);
  pipe_ = -1;
}

// ---- RankLink ----

int RankLink::Open(int socket, const std::string& path, std::atomic<uint64_t>* size) {
  socket_ = socket;
  size_ = size;
  return file_.Open(path);
}

void RankLink::Queue(std::string_view json) {
  for (int i = 0; i < 4; ++i) queue_.push_back(static_cast<char>(json.size() >> (8 * i) & 0xff));
  queue_.append(json);
  Write();
}

void RankLink::Write() {
  size_t done = 0;
  while (socket_ >= 0 && done < queue_.size()) {
    const ssize_t n =
        ::send(socket_, queue_.data() + done, queue_.size() - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN) done = queue_.size();  // nobody is there to read the rest
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  queue_.erase(0, done);
}

bool RankLink::Drain(size_t max_bytes) {
  char buffer[64 << 10];
  bool any = false;
  for (size_t taken = 0; socket_ >= 0 && taken < max_bytes && wants_read();) {
    const ssize_t n = ::recv(socket_, buffer, sizeof(buffer), MSG_DONTWAIT);
    if (n > 0) {
      any = true;
      taken += static_cast<size_t>(n);
      file_.Append(std::string_view(buffer, static_cast<size_t>(n)));
    } else if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
      if (errno == EAGAIN) break;
    } else {  // the end, or a rank that died with our bytes unread
      Close();
      any = true;
    }
  }
  size_->store(file_.written());
  return any;
}

bool RankLink::Flush() {
  const bool done = file_.Flush();
  size_->store(file_.written());
  return done;
}

void RankLink::Close() {
  if (socket_ >= 0) ::close(socket_);
  socket_ = -1;
  queue_.clear();
}

}  // namespace switchyard
