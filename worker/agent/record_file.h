// An append-only file of records, each checked by a checksum.
//   record = u32 little-endian length, u32 little-endian CRC-32C of the payload, payload
// A torn record at the end, of a process killed while it wrote, is cut off when the file is opened.
#ifndef SWITCHYARD_WORKER_AGENT_RECORD_FILE_H_
#define SWITCHYARD_WORKER_AGENT_RECORD_FILE_H_

#include <cstdint>
#include <cstring>
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

// Numbers in payloads: as they are in memory, little-endian on all machines that we run on.
template <typename T>
void PutValue(T value, std::string& payload) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  payload.append(bytes, sizeof(T));
}
// Takes it off the front. False: there is too little left; nothing was taken.
template <typename T>
bool TakeValue(absl::string_view& payload, T& value) {
  if (payload.size() < sizeof(T)) return false;
  std::memcpy(&value, payload.data(), sizeof(T));
  payload.remove_prefix(sizeof(T));
  return true;
}

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
  // On the disk when it returns. What could not be synced is taken back: a record is never both
  // refused and there. (After the death of the machine in between it may be there all the same.)
  // Errors: those of ErrnoStatus.
  absl::Status AppendSynced(absl::string_view payload);

  int64_t size_bytes() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  RecordFile(std::string path, UniqueFd fd, int64_t size, int64_t reserve_bytes)
      : path_(std::move(path)), fd_(std::move(fd)), size_(size), reserve_bytes_(reserve_bytes) {
    Reserve();
  }
  void Reserve();
  // Cuts off what stands behind the records.
  absl::Status Cut();

  const std::string path_;
  const UniqueFd fd_;
  int64_t size_;
  const int64_t reserve_bytes_;
  bool has_rest_ = false;  // something stands behind the records
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_RECORD_FILE_H_
