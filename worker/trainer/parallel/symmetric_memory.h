// Memory that every rank of a group can address: a rank stores straight into its peers' over
// NVLink. Only in builds with SY_CUDA.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_SYMMETRIC_MEMORY_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_SYMMETRIC_MEMORY_H_

#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "worker/trainer/parallel/comm.h"

namespace switchyard {

// One block of each rank, of the same size, zeroed before any rank has the pointers. Move-free; the
// owner destroys it when its own stream work has been queued for the last time: the destructor
// waits for the device and for no rank. A peer may still store into this rank's block: it stays
// until nobody maps it.
class SymmetricMemory {
 public:
  virtual ~SymmetricMemory() = default;
  // The block of each rank as this rank's device addresses it; 4096-byte aligned.
  const std::vector<uint8_t*>& blocks() const { return blocks_; }
  // The ranks are threads of one process.
  virtual bool in_process() const { return false; }
  // The group has failed: on release do not talk to it.
  virtual void Abandon() {}

 protected:
  std::vector<uint8_t*> blocks_;
};

struct SymmetricMemoryResult {
  std::unique_ptr<SymmetricMemory> memory;  // null: there is none, on any rank
  // How it came about ("peer access inside one process", "windows of NCCL 2.28.9"), or why there is
  // none and what to do about it.
  std::string explanation;
};

// Collective and eager: to be called once, at start, by every rank in the same order. Ranks that
// are threads of one process, each with a device (also the same one), share plain allocations;
// processes of one host share windows of an NCCL communicator of their own. All ranks get memory,
// or none does. Errors: CommError, when the group itself fails.
SymmetricMemoryResult MakeSymmetricMemory(Comm& group, c10::Device device, int64_t bytes);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_SYMMETRIC_MEMORY_H_
