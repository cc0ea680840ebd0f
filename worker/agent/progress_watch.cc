#include "worker/agent/progress_watch.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

constexpr int kFactor = 5;

}  // namespace

ProgressPhase ParsePhase(absl::string_view name) {
  if (name == "training") return ProgressPhase::kTraining;
  if (name == "validating") return ProgressPhase::kValidating;
  if (name == "saving") return ProgressPhase::kSaving;
  return ProgressPhase::kLoading;
}

absl::string_view PhaseName(ProgressPhase phase) {
  switch (phase) {
    case ProgressPhase::kStarting:
      return "starting";
    case ProgressPhase::kLoading:
      return "loading";
    case ProgressPhase::kTraining:
      return "training";
    case ProgressPhase::kValidating:
      return "validating";
    case ProgressPhase::kSaving:
      return "saving";
  }
  return "";
}

void ProgressWatch::OnPhase(ProgressPhase phase, absl::Duration now) {
  phase_ = phase;
  last_progress_ = now;
  had_step_ = false;
}

void ProgressWatch::OnStep(absl::Duration now) {
  // A step can only come of training: a phase frame may be missing.
  if (phase_ == ProgressPhase::kTraining && had_step_) {
    recent_.push_back(now - last_progress_);
    if (recent_.size() > kRecentSteps) recent_.pop_front();
  }
  phase_ = ProgressPhase::kTraining;
  had_step_ = true;
  last_progress_ = now;
}

absl::Duration ProgressWatch::Percentile99() const {
  std::vector<absl::Duration> sorted(recent_.begin(), recent_.end());
  if (sorted.empty()) return absl::ZeroDuration();
  std::sort(sorted.begin(), sorted.end());
  return sorted[std::min(sorted.size() - 1, sorted.size() * 99 / 100)];
}

absl::Duration ProgressWatch::Limit() const {
  if (phase_ != ProgressPhase::kTraining || !had_step_) return limits_.phase;
  return std::max(limits_.step_floor, kFactor * Percentile99());
}

std::string ProgressWatch::Describe(absl::Duration now) const {
  std::string text =
      absl::StrCat("no sign of progress for ", absl::FormatDuration(now - last_progress_),
                   " while ", PhaseName(phase_), ", the limit is ", absl::FormatDuration(Limit()));
  if (phase_ == ProgressPhase::kTraining && !recent_.empty()) {
    absl::StrAppend(&text, "; 99% of the last ", recent_.size(), " steps took at most ",
                    absl::FormatDuration(Percentile99()));
  }
  return text;
}

}  // namespace switchyard
