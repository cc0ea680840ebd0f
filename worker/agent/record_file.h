// An append-only file of records, each checked by a checksum.
//   record = u32 little-endian length, u32 little-endian CRC-32C of the payload, payload
// A torn record at the end, of a process killed while it wrote, is cut off when the file is opened.
#ifndef SWITCHYARD_WORKER_AGENT_RECORD_FILE_H_
#define SWITCHYARD_WORKER_AGENT_RECORD_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/fd.h"

namespace switchyard {

// As a record stands in the file.
std::string EncodeRecord(absl::string_view payload);

// Not thread-safe.
class RecordFile {
 public:
  // Creates the file, or reads its records into `*records`. `reserve_bytes` are taken from the disk
  // at once where the file system can, so that so much can be written after it has filled up.
  // Errors: those of ErrnoStatus.
  static absl::StatusOr<std::unique_ptr<RecordFile>> Open(const std::string& path,
                                                          std::vector<std::string>* records,
                                                          int64_t reserve_bytes = 0);

  // In the page cache when it returns: a killed process loses nothing. A failed write leaves the
  // file as it was. Errors: those of ErrnoStatus.
  absl::Status Append(absl::string_view payload);
  // On the disk when it returns.
  absl::Status Sync();

  int64_t size_bytes() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  RecordFile(std::string path, UniqueFd fd, int64_t size)
      : path_(std::move(path)), fd_(std::move(fd)), size_(size) {}

  const std::string path_;
  const UniqueFd fd_;
  int64_t size_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_RECORD_FILE_H_
