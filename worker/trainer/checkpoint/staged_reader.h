// Reads ranges of files into tensors at the speed of the disk: all threads of this rank fill one
// host buffer while the one before is on its way to the device.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_STAGED_READER_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_STAGED_READER_H_

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/trainer/checkpoint/file_runs.h"
#include "worker/trainer/checkpoint/gang_io.h"
#include "worker/trainer/checkpoint/reshard.h"

namespace switchyard {

// One thread; reads with at::get_num_threads() of them. Host memory: two pinned buffers for a GPU,
// else one. On a GPU everything is queued on the current stream.
class StagedReader {
 public:
  // Takes `values` [n] on the device, in the file's dtype, which belong at elements
  // [first, first + n) of the shard. They are valid during the call, and for work that it queues.
  using Use = std::function<void(int64_t first, const at::Tensor& values)>;

  // `buffer_bytes`: of each host buffer, at least 8; 0: 64 MiB for a GPU, else 16 MiB.
  StagedReader(std::string folder, std::vector<std::string> files, at::Device device,
               int64_t buffer_bytes = 0);

  // Calls `use` for all pieces of the range, now or in a later call. `counted`: its checksum
  // becomes part of `runs`. Errors: as OpenFiles::ReadAt, also of ranges that were asked for
  // before.
  absl::Status Read(const CopyRange& range, Use use, bool counted = false);
  // Reads what is left. Without it, ranges of the last calls may be missing.
  absl::Status Finish() { return Flush(); }
  // The counted ranges, in any order. After Finish.
  const std::vector<FileRun>& runs() const { return runs_; }

 private:
  struct Piece {
    int file;
    uint64_t offset;  // in the file
    int64_t bytes;
    int64_t position;  // in the buffer
    int64_t first;     // element of the shard
    at::ScalarType dtype;
    Use use;
    bool counted;
  };
  struct Buffer {
    at::Tensor bytes;                  // uint8, on the host
    std::optional<c10::Event> copied;  // to the device; it may be filled again then
  };
  absl::Status Flush();

  OpenFiles files_;
  at::Device device_;
  std::vector<Buffer> buffers_;
  size_t current_ = 0;
  int64_t used_ = 0;  // bytes of the current buffer
  std::vector<Piece> pieces_;
  std::vector<FileRun> runs_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_STAGED_READER_H_
