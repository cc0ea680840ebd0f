#include "server/scheduler/health.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace switchyard {
namespace {

constexpr size_t kRecentSteps = 64;

std::string Names(const std::vector<std::string>& nodes) {
  const size_t shown = std::min<size_t>(nodes.size(), 3);
  return absl::StrCat(
      absl::StrJoin(nodes.begin(), nodes.begin() + shown, ", "),
      nodes.size() > shown ? absl::StrCat(" and ", nodes.size() - shown, " more") : "");
}

absl::optional<std::string> AssessStall(const GangHealth& gang, const HealthConfig& config,
                                        absl::Duration now) {
  if (gang.stopping) {
    const absl::Duration limit = gang.stop_grace + config.stop_slack;
    if (now - gang.since <= limit) return absl::nullopt;
    return absl::StrCat("it has been stopping for more than ", absl::FormatDuration(limit),
                        "; its processes should be gone");
  }
  if (gang.step == 0) return absl::nullopt;
  const absl::Duration limit =
      std::max(config.stall_floor, 5 * absl::Seconds(gang.usual_step_seconds));
  if (now - gang.last_step <= limit) return absl::nullopt;
  return absl::StrFormat("no step after %d for more than %s; a step usually takes %.3g s",
                         gang.step, absl::FormatDuration(limit), gang.usual_step_seconds);
}

}  // namespace

absl::optional<std::string> Assess(ConditionType type, const GangHealth& gang,
                                   const HealthConfig& config, absl::Duration now) {
  switch (type) {
    case ConditionType::kUnreachable:
      if (gang.unreachable.empty()) return absl::nullopt;
      return absl::StrCat("not heard from: ", Names(gang.unreachable));
    case ConditionType::kStalled:
      return AssessStall(gang, config, now);
    case ConditionType::kStraggling:
      if (gang.stopping || gang.straggler < 0) return absl::nullopt;
      return absl::StrFormat("rank %d is busy %.1f times as long as the median rank",
                             gang.straggler, gang.straggler_ratio);
    case ConditionType::kCheckpointStale: {
      const int64_t without = gang.step - gang.checkpoint_step;
      if (gang.stopping || gang.checkpoint_every <= 0 || without <= 2 * gang.checkpoint_every) {
        return absl::nullopt;
      }
      // The step would change the message all the time.
      return absl::StrCat("no checkpoint was committed after step ", gang.checkpoint_step,
                          "; one is asked for every ", gang.checkpoint_every, " steps");
    }
    case ConditionType::kDraining:
      if (gang.draining.empty()) return absl::nullopt;
      return absl::StrCat("being drained: ", Names(gang.draining));
  }
  return absl::nullopt;
}

HealthTracker::HealthTracker(Store& store, const HealthConfig& config) : config_(config) {
  store.Subscribe([inbox = inbox_](const ChangeSet& changes) {
    if (changes.steps.empty() && changes.checkpoints.empty()) return;
    absl::MutexLock lock(&inbox->mu);
    inbox->steps.insert(inbox->steps.end(), changes.steps.begin(), changes.steps.end());
    for (const CheckpointChange& change : changes.checkpoints) {
      if (change.to == CheckpointState::kCommitted) {
        inbox->checkpoints.emplace_back(change.job, change.step);
      }
    }
  });
}

void HealthTracker::TakeStep(absl::Duration now, const StepChange& step) {
  const auto it = tracks_.find(step.attempt.job);
  if (it == tracks_.end() || it->second.attempt != step.attempt.number) return;
  Track& track = it->second;
  GangHealth& health = track.health;
  if (health.step == 0) health.checkpoint_step = step.step - 1;
  health.step = std::max(health.step, step.step);
  health.last_step = now;
  track.seconds.push_back(step.step_seconds);
  if (track.seconds.size() > kRecentSteps) track.seconds.pop_front();
  // Of at most 64, the 99th percentile is the largest.
  health.usual_step_seconds = *std::max_element(track.seconds.begin(), track.seconds.end());

  const bool slow = step.slow_rank >= 0 && step.slow_ratio >= config_.straggler_ratio;
  track.slow_steps = slow && step.slow_rank == track.slow_rank ? track.slow_steps + 1 : slow;
  track.slow_rank = slow ? step.slow_rank : -1;
  const bool still = step.slow_rank == health.straggler && step.slow_ratio >= config_.straggler_end;
  track.even_steps = still ? 0 : track.even_steps + 1;
  if (track.slow_steps >= config_.straggler_steps) {
    if (health.straggler != step.slow_rank) health.straggler_ratio = step.slow_ratio;
    health.straggler = step.slow_rank;
    track.even_steps = 0;
  } else if (track.even_steps >= config_.straggler_steps) {
    health.straggler = -1;
  }
}

void HealthTracker::TakeSteps(absl::Duration now) {
  std::vector<StepChange> steps;
  std::vector<std::pair<JobId, int64_t>> checkpoints;
  {
    absl::MutexLock lock(&inbox_->mu);
    steps.swap(inbox_->steps);
    checkpoints.swap(inbox_->checkpoints);
  }
  for (const StepChange& step : steps) TakeStep(now, step);
  for (const auto& [job, step] : checkpoints) {
    const auto it = tracks_.find(job);
    if (it != tracks_.end()) it->second.health.checkpoint_step = step;
  }
}

void HealthTracker::Retell() {
  for (auto& [id, track] : tracks_) {
    track.told = false;
    track.set.clear();
  }
}

std::vector<ConditionChange> HealthTracker::Update(absl::Duration now,
                                                   const std::map<JobId, JobView>& live,
                                                   const std::vector<NodeView>& nodes) {
  for (auto it = tracks_.begin(); it != tracks_.end();) {
    it = live.contains(it->first) ? std::next(it) : tracks_.erase(it);
  }
  for (const auto& [id, job] : live) {
    Track& track = tracks_[id];
    if (track.attempt == job.attempt) continue;
    track = Track{};  // a new attempt has no conditions yet, or a new coordinator knows of none
    track.attempt = job.attempt;
    track.health.since = now;
  }
  TakeSteps(now);
  std::vector<ConditionChange> changes;
  for (const auto& [id, job] : live) {
    Track& track = tracks_[id];
    GangHealth& health = track.health;
    const bool stopping = job.state == JobState::kStopping;
    if (stopping != health.stopping) health.since = now;
    health.stopping = stopping;
    health.stop_grace = job.stop_grace;
    health.checkpoint_every = job.checkpoint_every;
    health.unreachable.clear();
    health.draining.clear();
    for (const GangMember& part : job.parts) {
      const auto node =
          std::lower_bound(nodes.begin(), nodes.end(), part.node,
                           [](const NodeView& n, const NodeId& wanted) { return n.id < wanted; });
      if (node == nodes.end() || node->id != part.node) continue;
      if (!node->reachable) health.unreachable.push_back(part.node.value());
      if (node->draining) health.draining.push_back(part.node.value());
    }
    for (const ConditionType type : AllConditionTypes()) {
      const absl::optional<std::string> message = Assess(type, health, config_, now);
      const auto known = track.set.find(type);
      const bool same = message ? known != track.set.end() && known->second == *message
                                : known == track.set.end() && track.told;
      if (same) continue;
      changes.push_back({id, type, message});
      if (message) {
        track.set[type] = *message;
      } else {
        track.set.erase(type);
      }
    }
    track.told = true;
  }
  return changes;
}

}  // namespace switchyard
