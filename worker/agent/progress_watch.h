// Finds gangs that have stopped making progress. Pure: times are arguments.
#ifndef SWITCHYARD_WORKER_AGENT_PROGRESS_WATCH_H_
#define SWITCHYARD_WORKER_AGENT_PROGRESS_WATCH_H_

#include <cstdint>
#include <deque>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace switchyard {

enum class ProgressPhase : uint32_t { kStarting, kLoading, kTraining, kValidating, kSaving };
// Other names than "training", "validating", "saving" count as loading.
ProgressPhase ParsePhase(absl::string_view name);
absl::string_view PhaseName(ProgressPhase phase);

struct ProgressLimits {
  // While training, a step may take 5 times the 99th percentile of the recent ones, and at least
  // this.
  absl::Duration step_floor = absl::Minutes(5);
  // Every other phase, and a phase's first step.
  absl::Duration phase = absl::Minutes(30);
};

class ProgressWatch {
 public:
  ProgressWatch(const ProgressLimits& limits, ProgressPhase phase, absl::Duration now)
      : limits_(limits), phase_(phase), last_progress_(now) {}

  void OnPhase(ProgressPhase phase, absl::Duration now);
  void OnStep(absl::Duration now);
  // When the gang hangs, if nothing comes until then.
  absl::Duration Deadline() const { return last_progress_ + Limit(); }
  absl::Duration Limit() const;
  // "no step for 5m0s while training (recent steps took at most 1.2s)"
  std::string Describe(absl::Duration now) const;
  ProgressPhase phase() const { return phase_; }

 private:
  static constexpr size_t kRecentSteps = 128;
  absl::Duration Percentile99() const;

  const ProgressLimits limits_;
  ProgressPhase phase_;
  absl::Duration last_progress_;
  bool had_step_ = false;  // in this phase
  std::deque<absl::Duration> recent_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_PROGRESS_WATCH_H_
