#include "server/lifecycle.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/failure_policy.h"

namespace switchyard {
namespace {

bool AllReached(const GangView& gang, PlacementPhase phase) {
  return std::all_of(gang.placements.begin(), gang.placements.end(),
                     [&](const PlacementRecord& p) { return p.phase >= phase; });
}

bool EndedBadly(const PlacementRecord& p) {
  return p.phase == PlacementPhase::kLost || (p.phase == PlacementPhase::kFinished && !p.succeeded);
}

// The attempt's failure, or one made of what the nodes' parts say.
absl::optional<FailureRecord> FailureOf(const GangView& gang) {
  if (gang.attempt.failure.has_value()) return gang.attempt.failure;
  for (const PlacementRecord& p : gang.placements) {
    if (!EndedBadly(p)) continue;
    FailureRecord failure;
    failure.node = p.node.value();
    if (p.phase == PlacementPhase::kLost) {
      failure.reason = FailureReason::kNodeLost;
      failure.message = absl::StrCat("node ", p.node.value(), " is lost");
    } else if (p.stopped) {
      failure.reason = FailureReason::kDrained;
      failure.message = absl::StrCat("the agent of node ", p.node.value(),
                                     " stopped its ranks without an order from the coordinator");
    } else {
      failure.reason = FailureReason::kExitUnknown;
      failure.message =
          absl::StrCat("the ranks of node ", p.node.value(), " ended without a known cause");
    }
    return failure;
  }
  return absl::nullopt;
}

GangHop CloseFailed(const GangView& gang, FailureRecord failure) {
  GangHop hop;
  const bool gone =
      failure.reason == FailureReason::kNodeLost || failure.reason == FailureReason::kNodeReboot;
  const bool released = gone && !gang.attempt.started;
  hop.attempt = released ? AttemptState::kReleased
                : gone   ? AttemptState::kLost
                         : AttemptState::kFailed;
  // Trainers that could not read it said so before their first step; a checkpoint of their own that
  // was refused is another matter. Their word costs one checkpoint: should the one before be
  // refused as well, it is not the files that are wrong, and none of them is given up.
  const bool refused = failure.reason == FailureReason::kCheckpointInvalid &&
                       gang.attempt.failure.has_value() && !gang.attempt.resume_from.empty() &&
                       !gang.stepped;
  hop.reject_checkpoint = refused && gang.older_checkpoint && !gang.retry.fell_back;
  RetryVerdict verdict = JudgeFailure(
      gang.needs, gang.retry, failure,
      {gang.attempt.started, gang.committed_step, /*falls_back=*/hop.reject_checkpoint});
  hop.reject_checkpoint = hop.reject_checkpoint && verdict.retry;
  verdict.state.fell_back = hop.reject_checkpoint;
  hop.job = verdict.retry ? JobState::kQueued : JobState::kFailed;
  hop.retry = std::move(verdict.state);
  hop.waits = verdict.waits;
  hop.message =
      absl::StrCat("attempt ", gang.attempt.id.number, " ended: ", Name(failure.reason), ": ",
                   failure.message, verdict.sentence.empty() ? "" : "; ", verdict.sentence);
  hop.failure = std::move(failure);
  return hop;
}

GangHop CloseHop(const GangView& gang) {
  GangHop hop;
  if (gang.job_state == JobState::kStopping) {
    if (gang.attempt.state != AttemptState::kStopping) {
      hop.attempt = AttemptState::kStopping;
      return hop;
    }
    const bool all_well = std::all_of(gang.placements.begin(), gang.placements.end(),
                                      [](const PlacementRecord& p) { return !EndedBadly(p); });
    const bool may_succeed =
        gang.stop_target == StopTarget::kPaused || gang.stop_target == StopTarget::kQueued;
    if (may_succeed && all_well && gang.final_checkpoint && gang.attempt.started) {
      hop.attempt = AttemptState::kSucceeded;
      hop.job = JobState::kSucceeded;
      hop.message = "every rank ended well before it could be stopped";
      return hop;
    }
    hop.attempt = gang.attempt.started ? AttemptState::kStopped : AttemptState::kReleased;
    hop.job = TargetState(gang.stop_target);
    hop.message = absl::StrCat("attempt ", gang.attempt.id.number, " is closed");
    if (gang.stop_target == StopTarget::kFailed) {
      hop.failure.emplace();
      hop.failure->reason = FailureReason::kDeadline;
      hop.failure->message = gang.stop_message;
    }
    return hop;
  }
  if (absl::optional<FailureRecord> failure = FailureOf(gang)) {
    return CloseFailed(gang, *std::move(failure));
  }
  // Every node ended well, perhaps before a slower report said that all were running.
  if (gang.attempt.state == AttemptState::kReserved) {
    hop.attempt = AttemptState::kDispatched;
  } else if (gang.attempt.state == AttemptState::kDispatched) {
    hop.attempt = AttemptState::kStarting;
  } else if (gang.attempt.state == AttemptState::kStarting) {
    hop.attempt = AttemptState::kRunning;
    hop.job = JobState::kRunning;
  } else if (!gang.final_checkpoint) {
    FailureRecord failure;
    failure.reason = FailureReason::kCheckpointInvalid;
    failure.message = "every rank ended well, but no final checkpoint was committed";
    return CloseFailed(gang, std::move(failure));
  } else {
    hop.attempt = AttemptState::kSucceeded;
    hop.job = JobState::kSucceeded;
  }
  return hop;
}

}  // namespace

GangHop NextHop(const GangView& gang) {
  GangHop hop;
  const AttemptState state = gang.attempt.state;
  if (IsFinal(state)) return hop;
  if (AllReached(gang, PlacementPhase::kFinished)) return CloseHop(gang);
  if (state == AttemptState::kStopping) return hop;  // waits for the last node

  if (gang.job_state == JobState::kStopping) {
    hop.attempt = AttemptState::kStopping;
  } else if (absl::optional<FailureRecord> failure = FailureOf(gang)) {
    hop.attempt = AttemptState::kStopping;
    hop.message = absl::StrCat(Name(failure->reason), ": ", failure->message,
                               "; the rest of the gang is stopped");
    hop.failure = std::move(failure);
  } else if (state == AttemptState::kReserved && AllReached(gang, PlacementPhase::kDispatched)) {
    hop.attempt = AttemptState::kDispatched;
  } else if (state == AttemptState::kDispatched && AllReached(gang, PlacementPhase::kPrepared)) {
    hop.attempt = AttemptState::kStarting;
  } else if (state == AttemptState::kStarting && AllReached(gang, PlacementPhase::kRunning)) {
    hop.attempt = AttemptState::kRunning;
    hop.job = JobState::kRunning;
  }
  return hop;
}

}  // namespace switchyard
