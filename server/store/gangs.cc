// Writes about gangs: placement, and the moves of attempts.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/error.h"
#include "server/failure_policy.h"
#include "server/lifecycle.h"
#include "server/store/rows.h"
#include "server/store/transaction.h"

namespace switchyard {
namespace {

absl::Status ReleaseDevices(Transaction& tx, const AttemptId& id, const NodeId& node) {
  ASSIGN_OR_RETURN(Query query, tx.db.Prepare("DELETE FROM reservations WHERE node = ? AND job = ? "
                                              "AND attempt = ?"));
  RETURN_IF_ERROR(query.Bind(node.value(), id.job.value(), id.number).Run().status());
  tx.changes.schedule = true;
  tx.changes.scheduling_jobs.insert(id.job);
  return absl::OkStatus();
}

absl::StatusOr<bool> HasFinalCheckpoint(Database& db, const JobId& job) {
  ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT 1 FROM checkpoints WHERE job = ? AND final = 1 "
                                           "AND state = ?"));
  return query.Bind(job.value(), CheckpointState::kCommitted).Step();
}

// The highest step that the job ever committed; 0: none.
absl::StatusOr<int64_t> CommittedStep(Database& db, const JobId& job) {
  ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT coalesce(max(step), 0) FROM checkpoints WHERE "
                                           "job = ? AND commit_seq > 0"));
  RETURN_IF_ERROR(query.Bind(job.value()).Step().status());
  return query.IntAt(0);
}

absl::StatusOr<bool> HasSteps(Database& db, const AttemptId& id) {
  ASSIGN_OR_RETURN(Query query,
                   db.Prepare("SELECT 1 FROM step_metrics WHERE job = ? AND attempt = ? LIMIT 1"));
  return query.Bind(id.job.value(), id.number).Step();
}

// None: the attempt began anew, or from what is no committed checkpoint of its job.
absl::StatusOr<absl::optional<CheckpointRecord>> ResumedCheckpoint(Database& db,
                                                                   const AttemptRecord& attempt) {
  absl::optional<CheckpointRecord> found;
  if (attempt.resume_from.empty()) return found;
  ASSIGN_OR_RETURN(Query query,
                   db.Prepare(absl::StrCat("SELECT ", kCheckpointColumns,
                                           " FROM checkpoints WHERE job = ? AND path = ? "
                                           "AND state = ?")));
  query.Bind(attempt.id.job.value(), attempt.resume_from, CheckpointState::kCommitted);
  ASSIGN_OR_RETURN(const bool row, query.Step());
  if (row) found = ReadCheckpoint(query);
  return found;
}

absl::StatusOr<bool> HasOlderCheckpoint(Database& db, const CheckpointRecord& checkpoint) {
  ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT 1 FROM checkpoints WHERE job = ? AND step < ? "
                                           "AND state = ? LIMIT 1"));
  return query.Bind(checkpoint.job.value(), checkpoint.step, CheckpointState::kCommitted).Step();
}

// The plan chose the checkpoint to resume from before this transaction. A publication that is still
// being carried out would give a newer one, and retention may have taken the chosen one.
absl::Status CheckResumePath(Transaction& tx, const GangPlacement& gang) {
  {
    ASSIGN_OR_RETURN(Query query,
                     tx.db.Prepare("SELECT step FROM checkpoints WHERE job = ? AND state = ?"));
    query.Bind(gang.job.value(), CheckpointState::kCommitting);
    ASSIGN_OR_RETURN(const bool committing, query.Step());
    if (committing) {
      return absl::AbortedError(absl::StrCat("place job ", gang.job.value(), ": the checkpoint of ",
                                             "step ", query.IntAt(0), " is being published"));
    }
  }
  if (gang.resume_from.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(Query query,
                   tx.db.Prepare("SELECT 1 FROM checkpoints WHERE job = ? AND path = ? "
                                 "AND state = ?"));
  query.Bind(gang.job.value(), gang.resume_from, CheckpointState::kCommitted);
  ASSIGN_OR_RETURN(const bool there, query.Step());
  if (there) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("place job ", gang.job.value(), ": checkpoint ",
                                         gang.resume_from, " is no longer there"));
}

absl::Status CheckNodes(Transaction& tx, const GangPlacement& gang) {
  for (const GangMember& member : gang.members) {
    ASSIGN_OR_RETURN(Query query,
                     tx.db.Prepare("SELECT scheduling, lost, EXISTS (SELECT 1 FROM quarantines q "
                                   "WHERE q.node = nodes.name AND q.message <> '') FROM nodes "
                                   "WHERE name = ?"));
    ASSIGN_OR_RETURN(const bool found, query.Bind(member.node.value()).Step());
    if (found && query.IntAt(1) == 0 && query.IntAt(2) == 0 &&
        query.IntAt(0) == static_cast<int64_t>(NodeScheduling::kActive)) {
      continue;
    }
    return absl::AbortedError(absl::StrCat("place job ", gang.job.value(), ": node ",
                                           member.node.value(),
                                           " is lost, cordoned, being drained or quarantined"));
  }
  return absl::OkStatus();
}

absl::Status PlaceGang(Transaction& tx, const GangPlacement& gang) {
  ASSIGN_OR_RETURN(JobRecord job, LoadJob(tx.db, gang.job));
  if (job.version != gang.version || job.state != JobState::kQueued) {
    return absl::AbortedError(absl::StrCat("place job ", gang.job.value(), ": it is at version ",
                                           job.version, ", the plan at ", gang.version));
  }
  if (job.needs.max_run_time > absl::ZeroDuration() && job.run_time >= job.needs.max_run_time) {
    JobMove move{
        JobState::kFailed,
        absl::StrCat("it has held devices for ", absl::FormatDuration(job.run_time),
                     ", its max_run_time is ", absl::FormatDuration(job.needs.max_run_time))};
    move.failure.emplace();
    move.failure->reason = FailureReason::kDeadline;
    move.failure->message = move.message;
    return MoveJob(tx, job, move);
  }
  RETURN_IF_ERROR(CheckNodes(tx, gang));
  RETURN_IF_ERROR(CheckResumePath(tx, gang));
  // After a restore, past the numbers that the lost history may have used.
  ASSIGN_OR_RETURN(const int64_t first,
                   tx.db.QueryInt("SELECT coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE "
                                  "key = 'first_attempt'), 1)"));
  const int32_t number = std::max(job.current_attempt + 1, static_cast<int32_t>(first));
  {
    ASSIGN_OR_RETURN(
        Query query,
        tx.db.Prepare("INSERT INTO attempts VALUES (?, ?, ?, 0, ?, NULL, ?, NULL, 0)"));
    query.Bind(job.id.value(), number, AttemptState::kReserved, gang.resume_from, ToRow(tx.now));
    RETURN_IF_ERROR(query.Run().status());
  }
  int32_t node_rank = 0;
  int32_t first_rank = 0;
  for (const GangMember& member : gang.members) {
    {
      ASSIGN_OR_RETURN(Query query, tx.db.Prepare("INSERT INTO placements VALUES (?, ?, ?, ?, ?, "
                                                  "?, ?, 0, 0, 0)"));
      query.Bind(job.id.value(), number, member.node.value(), node_rank, first_rank,
                 ToRow(member.devices), PlacementPhase::kReserved);
      RETURN_IF_ERROR(query.Run().status());
    }
    for (int32_t device : member.devices) {
      ASSIGN_OR_RETURN(Query query, tx.db.Prepare("INSERT INTO reservations VALUES (?, ?, ?, ?)"));
      query.Bind(member.node.value(), device, job.id.value(), number);
      RETURN_IF_ERROR(query.Run().status());
    }
    tx.changes.nodes.insert(member.node);
    ++node_rank;
    first_rank += static_cast<int32_t>(member.devices.size());
  }
  job.current_attempt = number;
  const std::string where = absl::StrCat(
      "attempt ", number, " placed on ",
      absl::StrJoin(gang.members, ", ",
                    [](std::string* out, const GangMember& m) {
                      absl::StrAppend(out, m.node.value(), " (", m.devices.size(), " ranks)");
                    }),
      gang.resume_from.empty() ? "" : absl::StrCat(", resumes from ", gang.resume_from));
  return MoveJob(tx, job, {JobState::kStarting, where});
}

absl::Status NotePending(Transaction& tx, const PendingNote& note) {
  ASSIGN_OR_RETURN(JobRecord job, LoadJob(tx.db, note.job));
  if (job.version != note.version || job.state != JobState::kQueued) return absl::OkStatus();
  if (job.pending == note.reason && job.message == note.message) return absl::OkStatus();
  const bool news = job.pending != note.reason;
  job.pending = note.reason;
  job.message = note.message;
  RETURN_IF_ERROR(UpdateJob(tx, job));
  // The numbers in the message change often; an event is written when the reason does.
  return news ? AddEvent(tx, job, "STATE", absl::StrCat(Name(note.reason), ": ", note.message))
              : absl::OkStatus();
}

}  // namespace

absl::Status UpdatePlacement(Transaction& tx, const PlacementRecord& p) {
  {
    ASSIGN_OR_RETURN(Query query,
                     tx.db.Prepare("UPDATE placements SET phase = ?, port = ?, succeeded = ?, "
                                   "stopped = ? WHERE job = ? AND attempt = ? AND node = ?"));
    query.Bind(p.phase, p.port, p.succeeded, p.stopped, p.attempt.job.value(), p.attempt.number,
               p.node.value());
    RETURN_IF_ERROR(query.Run().status());
  }
  tx.changes.nodes.insert(p.node);
  if (p.phase < PlacementPhase::kFinished) return absl::OkStatus();
  return ReleaseDevices(tx, p.attempt, p.node);
}

absl::Status MoveAttempt(Transaction& tx, const JobRecord& job, AttemptRecord& attempt,
                         AttemptState to, const absl::optional<FailureRecord>& failure,
                         const std::string& message) {
  if (!IsLegal(attempt.state, to)) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "ILLEGAL_TRANSITION",
                     absl::StrCat("move attempt ", attempt.id.number, " of job ",
                                  attempt.id.job.value(), ": from ", Name(attempt.state), " to ",
                                  Name(to), " is not a legal transition"));
  }
  attempt.state = to;
  attempt.started = attempt.started || to == AttemptState::kStarting;
  if (!attempt.failure) attempt.failure = failure;
  if (IsFinal(to)) attempt.end_time = tx.now;
  {
    ASSIGN_OR_RETURN(Query query, tx.db.Prepare("UPDATE attempts SET state = ?, started = ?, "
                                                "failure = ?, end_time = ? WHERE job = ? AND "
                                                "number = ?"));
    query.Bind(to, attempt.started);
    attempt.failure ? query.Text(3, ToRow(*attempt.failure)) : query.Null(3);
    attempt.end_time ? query.Int(4, ToRow(*attempt.end_time)) : query.Null(4);
    query.Text(5, attempt.id.job.value()).Int(6, attempt.id.number);
    RETURN_IF_ERROR(query.Run().status());
  }
  ASSIGN_OR_RETURN(const auto placements, LoadPlacements(tx.db, attempt.id));
  for (PlacementRecord p : placements) {
    tx.changes.nodes.insert(p.node);
    if (to == AttemptState::kStopping && p.phase == PlacementPhase::kReserved) {
      // Never sent to its node, so nothing has to stop there.
      p.phase = PlacementPhase::kFinished;
      p.stopped = true;
      RETURN_IF_ERROR(UpdatePlacement(tx, p));
    }
  }
  tx.changes.attempt_changes.push_back(
      {attempt.id, to, attempt.failure ? attempt.failure->reason : FailureReason::kNone});
  return AddEvent(tx, job, "ATTEMPT",
                  absl::StrCat("attempt ", attempt.id.number, " is ", Name(to),
                               message.empty() ? "" : ": ", message));
}

absl::Status AdvanceGang(Transaction& tx, const AttemptId& id) {
  while (true) {
    ASSIGN_OR_RETURN(JobRecord job, LoadJob(tx.db, id.job));
    GangView gang;
    gang.job_state = job.state;
    gang.stop_target = job.stop_target;
    gang.stop_message = job.message;
    gang.needs = job.needs;
    gang.retry = job.retry;
    ASSIGN_OR_RETURN(gang.committed_step, CommittedStep(tx.db, id.job));
    ASSIGN_OR_RETURN(gang.attempt, LoadAttempt(tx.db, id));
    ASSIGN_OR_RETURN(gang.placements, LoadPlacements(tx.db, id));
    ASSIGN_OR_RETURN(gang.final_checkpoint, HasFinalCheckpoint(tx.db, id.job));
    absl::optional<CheckpointRecord> resumed;
    if (gang.attempt.failure && gang.attempt.failure->reason == FailureReason::kCheckpointInvalid) {
      ASSIGN_OR_RETURN(gang.stepped, HasSteps(tx.db, id));
      ASSIGN_OR_RETURN(resumed, ResumedCheckpoint(tx.db, gang.attempt));
      if (resumed) {
        ASSIGN_OR_RETURN(gang.older_checkpoint, HasOlderCheckpoint(tx.db, *resumed));
      }
    }
    const GangHop hop = NextHop(gang);
    if (hop.none()) return absl::OkStatus();
    if (hop.reject_checkpoint) {
      RETURN_IF_ERROR(DropCheckpoint(tx, *resumed, hop.failure->message));
      ASSIGN_OR_RETURN(job, LoadJob(tx.db, id.job));
    }
    if (hop.failure && DomainOf(hop.failure->reason) == FailureDomain::kHardware &&
        !hop.failure->node.empty() && hop.attempt && IsFinal(*hop.attempt)) {
      tx.changes.node_signals.push_back({NodeId(hop.failure->node), NodeSignalKind::kBroken});
    }
    if (hop.attempt) {
      RETURN_IF_ERROR(MoveAttempt(tx, job, gang.attempt, *hop.attempt, hop.failure,
                                  hop.job ? "" : hop.message));
    }
    if (hop.job) {
      JobMove move{*hop.job, hop.message};
      move.failure = hop.failure;
      if (hop.retry) job.retry = *hop.retry;
      if (*hop.job == JobState::kQueued && hop.retry) {
        move.pending = PendingReason::kRetryBackoff;
        move.backoff = RetryBackoff(tx.retry_backoff, hop.waits);
      }
      RETURN_IF_ERROR(MoveJob(tx, job, move));
    } else if (hop.failure) {
      job.message = hop.message;
      RETURN_IF_ERROR(UpdateJob(tx, job));
    }
  }
}

namespace {

absl::Status PreemptGang(Transaction& tx, const Preemption& preemption, absl::Duration grace) {
  ASSIGN_OR_RETURN(JobRecord job, LoadJob(tx.db, preemption.job));
  if (job.version != preemption.version ||
      (job.state != JobState::kStarting && job.state != JobState::kRunning)) {
    return absl::AbortedError(absl::StrCat("preempt job ", job.id.value(), ": it is ",
                                           Name(job.state), " at version ", job.version,
                                           ", the plan at ", preemption.version));
  }
  return StopGang(tx, job, StopTarget::kQueued, StopReason::kPreempted, grace,
                  absl::StrCat("its devices go to job ", preemption.for_job.value(),
                               ", which has a higher priority"));
}

// Aborted: overtaken by a cancel, say. FailedPrecondition: a device was taken. Both are seen by the
// next plan.
absl::Status ForgiveOvertaken(const absl::Status& status, const JobId& job) {
  if (!absl::IsAborted(status) && !absl::IsFailedPrecondition(status)) return status;
  SY_LOG(WARNING) << "plan overtaken job=" << job << " error=" << status.message();
  return absl::OkStatus();
}

}  // namespace

absl::Status Store::Apply(const Plan& plan) {
  for (const GangPlacement& gang : plan.placements) {
    RETURN_IF_ERROR(
        ForgiveOvertaken(Write([&](Transaction& tx) { return PlaceGang(tx, gang); }), gang.job));
  }
  // All victims of a job or none: half of them would stop for nothing.
  for (size_t i = 0; i < plan.preemptions.size();) {
    const JobId& for_job = plan.preemptions[i].for_job;
    size_t end = i;
    while (end < plan.preemptions.size() && plan.preemptions[end].for_job == for_job) ++end;
    RETURN_IF_ERROR(ForgiveOvertaken(Write([&](Transaction& tx) -> absl::Status {
                                       for (size_t k = i; k < end; ++k) {
                                         RETURN_IF_ERROR(PreemptGang(tx, plan.preemptions[k],
                                                                     plan.preemption_grace));
                                       }
                                       return absl::OkStatus();
                                     }),
                                     for_job));
    i = end;
  }
  if (plan.pending.empty()) return absl::OkStatus();
  return Write([&](Transaction& tx) -> absl::Status {
    for (const PendingNote& note : plan.pending) RETURN_IF_ERROR(NotePending(tx, note));
    return absl::OkStatus();
  });
}

}  // namespace switchyard
