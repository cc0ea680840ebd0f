// Writes about gangs: placement, and the moves of attempts.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/error.h"
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
  return absl::OkStatus();
}

absl::StatusOr<bool> HasFinalCheckpoint(Database& db, const JobId& job) {
  ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT 1 FROM checkpoints WHERE job = ? AND final = 1 "
                                           "AND state = ?"));
  return query.Bind(job.value(), CheckpointState::kCommitted).Step();
}

absl::Status PlaceGang(Transaction& tx, const GangPlacement& gang) {
  ASSIGN_OR_RETURN(JobRecord job, LoadJob(tx.db, gang.job));
  if (job.version != gang.version || job.state != JobState::kQueued) {
    return absl::AbortedError(absl::StrCat("place job ", gang.job.value(), ": it is at version ",
                                           job.version, ", the plan at ", gang.version));
  }
  const int32_t number = job.current_attempt + 1;
  {
    ASSIGN_OR_RETURN(Query query,
                     tx.db.Prepare("INSERT INTO attempts VALUES (?, ?, ?, 0, ?, NULL, ?, NULL)"));
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
    gang.max_retries = job.needs.max_retries;
    gang.retries_used = job.retries_used;
    ASSIGN_OR_RETURN(gang.attempt, LoadAttempt(tx.db, id));
    ASSIGN_OR_RETURN(gang.placements, LoadPlacements(tx.db, id));
    ASSIGN_OR_RETURN(gang.final_checkpoint, HasFinalCheckpoint(tx.db, id.job));
    const GangHop hop = NextHop(gang);
    if (hop.none()) return absl::OkStatus();
    if (hop.attempt) {
      RETURN_IF_ERROR(MoveAttempt(tx, job, gang.attempt, *hop.attempt, hop.failure,
                                  hop.job ? "" : hop.message));
    }
    if (hop.job) {
      JobMove move{*hop.job, hop.message};
      move.failure = hop.failure;
      if (*hop.job == JobState::kQueued) {
        move.pending = PendingReason::kRetryBackoff;
        move.backoff = RetryBackoff(tx.retry_backoff, job.retries_used);
        if (hop.uses_retry) job.retries_used += 1;
      }
      RETURN_IF_ERROR(MoveJob(tx, job, move));
    } else if (hop.failure) {
      job.message = hop.message;
      RETURN_IF_ERROR(UpdateJob(tx, job));
    }
  }
}

absl::Status Store::Apply(const Plan& plan) {
  for (const GangPlacement& gang : plan.placements) {
    const absl::Status status = Write([&](Transaction& tx) { return PlaceGang(tx, gang); });
    // Aborted: overtaken by a cancel, say. FailedPrecondition: a device was taken. Both are seen
    // by the next plan.
    if (absl::IsAborted(status) || absl::IsFailedPrecondition(status)) {
      SY_LOG(WARNING) << "plan overtaken job=" << gang.job << " error=" << status.message();
    } else if (!status.ok()) {
      return status;
    }
  }
  if (plan.pending.empty()) return absl::OkStatus();
  return Write([&](Transaction& tx) -> absl::Status {
    for (const PendingNote& note : plan.pending) RETURN_IF_ERROR(NotePending(tx, note));
    return absl::OkStatus();
  });
}

}  // namespace switchyard
