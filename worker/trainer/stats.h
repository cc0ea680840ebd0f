// Numbers about a step that are not part of training: time, memory, expert load.
#ifndef SWITCHYARD_WORKER_TRAINER_STATS_H_
#define SWITCHYARD_WORKER_TRAINER_STATS_H_

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/clock.h"

namespace switchyard {

// Largest resident memory of this process so far, in bytes (Linux: VmHWM). 0: unknown.
int64_t PeakHostMemoryBytes();

// What this process could take without swapping or being killed: the machine's available memory, or
// what is left of the control group's limit where that is less. INT64_MAX: unknown.
int64_t AvailableHostMemoryBytes();

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

// The same for a step that is queued on a device: laps are marks in the stream's work, which cost
// nothing and are read when the step is over. On the CPU they are the host's time. One thread.
class StepTimer {
 public:
  StepTimer(Clock& clock, at::Device device);

  void Lap(const std::string& phase);
  struct Times {
    std::map<std::string, double> seconds;  // by phase
    double total = 0;
  };
  // Waits until the device has passed the last mark.
  Times Read() const;

 private:
  at::Device device_;
  PhaseTimer host_;
  std::vector<std::pair<std::string, c10::Event>> marks_;  // CUDA; the first is the start
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_STATS_H_
