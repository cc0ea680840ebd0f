// A rank's shards as they are at one moment, on the host, so that they can be written while
// training changes the originals.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SNAPSHOT_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SNAPSHOT_H_

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "worker/trainer/checkpoint/host_arena.h"
#include "worker/trainer/checkpoint/shards.h"

namespace switchyard {

// Used by two threads, one after the other, that hand it over: Reserve and Wait by the one that
// writes, Take and BeforeUpdate by the one that trains.
class Snapshot {
 public:
  // `shards`: what is to be saved, on one device; those that another rank writes are left out.
  // `with_optimizer`: moments and remainders too.
  Snapshot(const std::vector<BucketShard>& shards, bool with_optimizer);

  // Of host memory: one more copy of what this rank saves, for as long as the snapshot lives.
  int64_t bytes() const { return bytes_; }

  // Gets the memory. Slow: see HostArena. Errors: ResourceExhausted.
  absl::Status Reserve();

  // Copies the shards as work queued on the current stream leaves them. On a GPU this queues copies
  // on a stream of its own and returns at once; on the CPU it copies. After Reserve.
  void Take();
  // What is queued on the current stream after this call may change the shards: it waits, on the
  // device, until they have been copied.
  void BeforeUpdate();

  // Blocks until the copies have arrived. The shards on the host, valid until the next Take.
  const std::vector<BucketShard>& Wait();

 private:
  struct Copy {
    at::Tensor from;
    int64_t position;  // of its first byte in the arena
  };
  void Add(const at::Tensor& tensor);

  std::vector<BucketShard> device_shards_;
  at::Device device_;
  std::vector<Copy> copies_;
  int64_t bytes_ = 0;
  std::unique_ptr<HostArena> arena_;
  std::vector<at::Tensor> on_host_;  // of copies_
  std::vector<BucketShard> host_shards_;
  std::optional<c10::Stream> stream_;  // GPU
  std::optional<c10::Event> copied_;   // the newest Take's, GPU
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SNAPSHOT_H_
