#include "server/artifacts/checkpoint_holds.h"

namespace switchyard {

CheckpointHolds::Hold::Hold(CheckpointHolds& holds, const JobId& job, std::string folder)
    : holds_(&holds), folder_(std::move(folder)) {
  absl::MutexLock lock(&holds.mu_);
  Entry& entry = holds.entries_[folder_];
  entry.job = job;
  ++entry.count;
}

CheckpointHolds::Hold::~Hold() {
  if (holds_ == nullptr) return;
  absl::MutexLock lock(&holds_->mu_);
  Entry& entry = holds_->entries_[folder_];
  --entry.count;
  entry.until = holds_->clock_.Monotonic() + kLinger;
}

bool CheckpointHolds::IsHeld(const std::string& folder) {
  const absl::Duration now = clock_.Monotonic();
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(folder);
  return it != entries_.end() && it->second.IsHeld(now);
}

std::set<JobId> CheckpointHolds::TakeReleased() {
  const absl::Duration now = clock_.Monotonic();
  std::set<JobId> jobs;
  absl::MutexLock lock(&mu_);
  for (auto it = entries_.begin(); it != entries_.end();) {
    if (it->second.IsHeld(now)) {
      ++it;
      continue;
    }
    jobs.insert(it->second.job);
    it = entries_.erase(it);
  }
  return jobs;
}

}  // namespace switchyard
