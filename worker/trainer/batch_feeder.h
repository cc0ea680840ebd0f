// Micro-batches as tensors on the host, prepared ahead of the step that needs them by a thread of
// its own. The model packs them into one pinned buffer on their way to a GPU (device_batch.h).
#ifndef SWITCHYARD_WORKER_TRAINER_BATCH_FEEDER_H_
#define SWITCHYARD_WORKER_TRAINER_BATCH_FEEDER_H_

#include <cstdint>
#include <deque>
#include <exception>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/thread.h"
#include "worker/trainer/data/loader.h"
#include "worker/trainer/models/decoder.h"

namespace switchyard {

DecoderBatch ToTensors(const Microbatch& rows);

// One user thread. The tensors given out are the user's.
class BatchFeeder {
 public:
  // Gives out the micro-batches of steps [first_step, end_step), in order. Copies `loader`, whose
  // file it borrows.
  BatchFeeder(const Loader& loader, int64_t first_step, int64_t end_step);
  ~BatchFeeder();

  // The next micro-batch, which must be this one. Throws what preparing it threw.
  DecoderBatch Next(int64_t step, int64_t microbatch);

 private:
  struct Item {
    int64_t step, microbatch;
    DecoderBatch batch;
    std::exception_ptr fault;
  };
  void Fill(int64_t first_step, int64_t end_step, const StopToken& token);
  // False: the feeder is being destroyed.
  bool Push(Item item);

  Loader loader_;
  absl::Mutex mu_;
  std::deque<Item> ready_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  Thread thread_;  // last: joined before the members it uses are destroyed
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_BATCH_FEEDER_H_
