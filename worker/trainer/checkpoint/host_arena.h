// One block of host memory that a device can copy to at full speed without anybody waiting.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_HOST_ARENA_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_HOST_ARENA_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

namespace switchyard {

// Memory of the process's own, of huge pages where the kernel gives them; pinned for a GPU. Torch's
// allocator of pinned memory would round each tensor up to a power of two and keep it for ever.
class HostArena {
 public:
  // Pinned pages are registered in runs of this size. A copy must not cross a multiple of it.
  static constexpr int64_t kRunBytes = int64_t{256} << 20;

  // Touches all of it, so that there is memory now or an error, which takes a while: about a second
  // for 5 GB. `pinned`: for the GPU that is current. Errors: ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<HostArena>> Make(int64_t bytes, bool pinned);
  ~HostArena();
  HostArena(const HostArena&) = delete;
  HostArena& operator=(const HostArena&) = delete;

  char* data() const { return data_; }

 private:
  HostArena(char* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  absl::Status Populate(bool pinned);

  char* data_;
  int64_t bytes_;
  int64_t registered_bytes_ = 0;  // populated, and pinned if that was wanted
  bool pinned_ = false;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_HOST_ARENA_H_
