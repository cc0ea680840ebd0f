// Writes scattered byte ranges of existing files at the speed of the disk: in file order, in large
// aligned windows that bypass the page cache, several at once. Torch-free.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_RANGE_WRITER_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_RANGE_WRITER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/trainer/checkpoint/file_runs.h"

namespace switchyard {

struct FileRange {
  int file = 0;
  uint64_t offset = 0;  // bytes from the start of the file
  uint64_t bytes = 0;
  size_t source = 0;  // for `fill`: where the bytes come from
};

// Bytes [skip, skip + bytes) of a range are wanted at `to`.
struct RangePart {
  size_t source = 0;
  uint64_t skip = 0;
  uint64_t bytes = 0;
  char* to = nullptr;
};

struct RangeWriterOptions {
  int threads = 1;
  // Each thread has one buffer of this size; a power of two, at least 4096. No window crosses a
  // multiple of it in the file.
  uint64_t window_bytes = uint64_t{16} << 20;
  // Windows of at least so many bytes are written with O_DIRECT, except for the bytes before the
  // first and after the last multiple of 4096, and where the file system does not know it.
  uint64_t direct_from_bytes = uint64_t{256} << 10;
  // Makes a buffer, aligned to 4096 bytes, where pageable memory would not do. Null: pageable.
  std::function<std::shared_ptr<char>(uint64_t bytes)> make_buffer;
  // Set from outside: gives up before the next window.
  const std::atomic<bool>* cancelled = nullptr;
};

// Writes all ranges, which do not overlap, and makes them durable (fsync). `fill` puts bytes where
// the parts say; it is called from several threads at once. Range and part boundaries inside a
// range are multiples of what the ranges' offsets and 4096 have in common. Returns what was
// written, joined (file_runs.h). Errors: what the file system said, naming the file; Cancelled;
// Internal for ranges that overlap; those of `fill`.
absl::StatusOr<std::vector<FileRun>> WriteRanges(
    const std::string& folder, const std::vector<std::string>& files, std::vector<FileRange> ranges,
    const std::function<absl::Status(const std::vector<RangePart>& parts)>& fill,
    const RangeWriterOptions& options);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_RANGE_WRITER_H_
