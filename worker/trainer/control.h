// What reaches the trainer from outside while it works: orders to stop, answers about checkpoints.
#ifndef SWITCHYARD_WORKER_TRAINER_CONTROL_H_
#define SWITCHYARD_WORKER_TRAINER_CONTROL_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "worker/link/messages.h"
#include "worker/trainer/parallel/agree.h"

namespace switchyard {

// Thread-safe.
class Control {
 public:
  // Async-signal-safe. Once asked to stop without a checkpoint it stays so: nobody would commit
  // one.
  void RequestStop(bool checkpoint) {
    if (!checkpoint) no_checkpoint_.store(true);
    stop_.store(true);
  }
  StopRequest stop() const { return {stop_.load(), !no_checkpoint_.load()}; }

  void AddCheckpointResult(CheckpointResultFrame result) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    const int64_t step = result.step;
    results_[step] = std::move(result);
  }
  // The answer for `step`, waiting at most `timeout` for it. nullopt: none came.
  std::optional<CheckpointResultFrame> TakeCheckpointResult(int64_t step, absl::Duration timeout)
      ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    const auto arrived = [this, step]()
                             ABSL_SHARED_LOCKS_REQUIRED(mu_) { return results_.count(step) != 0; };
    if (!mu_.AwaitWithTimeout(absl::Condition(&arrived), timeout)) return std::nullopt;
    CheckpointResultFrame result = std::move(results_[step]);
    results_.erase(step);
    return result;
  }

  // Steps done, for the error frame.
  std::atomic<int64_t> steps_done{0};

 private:
  std::atomic<bool> stop_{false};
  std::atomic<bool> no_checkpoint_{false};
  absl::Mutex mu_;
  std::map<int64_t, CheckpointResultFrame> results_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CONTROL_H_
