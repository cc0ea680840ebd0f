// Numbers about a step that are not part of training: time, memory, expert load.
#ifndef SWITCHYARD_WORKER_TRAINER_STATS_H_
#define SWITCHYARD_WORKER_TRAINER_STATS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>

#include "absl/time/time.h"
#include "base/clock.h"

namespace switchyard {

// Largest resident memory of this process so far, in bytes (Linux: VmHWM). 0: unknown.
int64_t PeakHostMemoryBytes();

// copies_LE: int64 [MoE layers, experts], token copies per expert over all ranks. The worst layer's
// largest expert over its mean; 1 at balance, 0 when nothing was routed.
double ExpertLoadMaxOverMean(const at::Tensor& copies_LE);

// Adds up where the time goes. One thread.
class PhaseTimer {
 public:
  explicit PhaseTimer(Clock& clock) : clock_(clock), start_(clock.Monotonic()), last_(start_) {}

  // Books the time since the last call (or the construction) on `phase`.
  void Lap(const std::string& phase);
  // Seconds by phase.
  const std::map<std::string, double>& seconds() const { return seconds_; }
  double total_seconds() const { return absl::ToDoubleSeconds(last_ - start_); }

 private:
  Clock& clock_;
  absl::Duration start_;
  absl::Duration last_;
  std::map<std::string, double> seconds_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_STATS_H_
