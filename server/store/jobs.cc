// Writes about jobs, and the moves that every write is made of.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/error.h"
#include "server/store/rows.h"
#include "server/store/transaction.h"

namespace switchyard {
namespace {

// The job that an earlier call with this key made; none: the key is new.
absl::StatusOr<absl::optional<JobRecord>> FindRepeated(Transaction& tx, const RequestKey& key) {
  if (key.request_id.empty()) return absl::optional<JobRecord>();
  std::string job;
  {
    ASSIGN_OR_RETURN(Query query, tx.db.Prepare("SELECT payload, job FROM idempotency WHERE "
                                                "project = ? AND method = ? AND request_id = ?"));
    ASSIGN_OR_RETURN(const bool found, query.Bind(key.project, key.method, key.request_id).Step());
    if (!found) return absl::optional<JobRecord>();
    if (query.TextAt(0) != key.payload) {
      return MakeError(absl::StatusCode::kInvalidArgument, "IDEMPOTENCY_KEY_REUSED",
                       absl::StrCat(key.method, ": request_id ", key.request_id,
                                    " was used before with another request"),
                       {{"request_id", key.request_id}, {"method", key.method}});
    }
    job = query.TextAt(1);
  }
  ASSIGN_OR_RETURN(JobRecord record, LoadJob(tx.db, JobId(job)));
  return absl::optional<JobRecord>(std::move(record));
}

absl::Status Remember(Transaction& tx, const RequestKey& key, const JobId& job) {
  if (key.request_id.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(Query query, tx.db.Prepare("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?)"));
  query.Bind(key.project, key.method, key.request_id)
      .Blob(4, key.payload)
      .Text(5, job.value())
      .Int(6, ToRow(tx.now));
  return query.Run().status();
}

absl::Status InsertJob(Transaction& tx, const JobRecord& job) {
  ASSIGN_OR_RETURN(
      Query query,
      tx.db.Prepare(
          "INSERT INTO jobs (name, uid, project, display_name, labels, spec, recipe, "
          "num_ranks, cpu_only, max_retries, keep_last, resumable, version, state, "
          "pending, message, stop_target, stop_grace_ms, current_attempt, retries_used, "
          "backoff_ms, create_time, update_time, priority, max_run_time_ms, max_user_retries, "
          "no_progress_limit, checkpoint_every, keep_every, keep_best, restore_from) VALUES (?, ?, "
          "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, "
          "?)"));
  query
      .Bind(job.id.value(), job.uid, job.project, job.display_name, ToRow(job.labels), "",
            job.recipe, job.needs.num_ranks, job.needs.cpu_only, job.needs.max_retries,
            job.needs.retention.keep_last, job.needs.resumable, job.version, job.state, job.pending,
            job.message, ToRow(tx.now), ToRow(tx.now), job.needs.priority,
            absl::ToInt64Milliseconds(job.needs.max_run_time), job.needs.max_user_retries,
            job.needs.no_progress_limit, job.needs.checkpoint_every, job.needs.retention.keep_every,
            job.needs.retention.keep_best, job.needs.restore_from)
      .Blob(6, job.spec);
  return query.Run().status();
}

}  // namespace

absl::Status AddEvent(Transaction& tx, const JobRecord& job, absl::string_view kind,
                      absl::string_view message) {
  ASSIGN_OR_RETURN(
      Query query,
      tx.db.Prepare("INSERT INTO events (job, job_seq, time, kind, message, state, attempt) VALUES "
                    "(?1, (SELECT coalesce(max(job_seq), 0) + 1 FROM events WHERE job = ?1), ?2, "
                    "?3, ?4, ?5, ?6)"));
  query.Bind(job.id.value(), ToRow(tx.now), kind, message, job.state, job.current_attempt);
  RETURN_IF_ERROR(query.Run().status());
  tx.changes.jobs.insert(job.id);
  return absl::OkStatus();
}

absl::Status UpdateJob(Transaction& tx, JobRecord& job) {
  job.version += 1;
  job.update_time = tx.now;
  ASSIGN_OR_RETURN(
      Query query,
      tx.db.Prepare(
          "UPDATE jobs SET version = ?, state = ?, pending = ?, message = ?, "
          "stop_target = ?, stop_grace_ms = ?, current_attempt = ?, retries_used = ?, "
          "backoff_ms = ?, update_time = ?, failure = ?, start_time = ?, end_time = ?, "
          "stop_reason = ?, user_retries_used = ?, no_progress = ?, progress_step = ?, "
          "fingerprint = ?, avoided = ?, free_failures = ?, fell_back = ? WHERE name = ?"));
  query.Bind(job.version, job.state, job.pending, job.message, job.stop_target,
             absl::ToInt64Milliseconds(job.stop_grace), job.current_attempt, job.retry.retries_used,
             absl::ToInt64Milliseconds(job.backoff), ToRow(job.update_time));
  job.failure ? query.Text(11, ToRow(*job.failure)) : query.Null(11);
  job.start_time ? query.Int(12, ToRow(*job.start_time)) : query.Null(12);
  job.end_time ? query.Int(13, ToRow(*job.end_time)) : query.Null(13);
  query.Int(14, static_cast<int64_t>(job.stop_reason))
      .Int(15, job.retry.user_retries_used)
      .Int(16, job.retry.no_progress)
      .Int(17, job.retry.progress_step)
      .Text(18, job.retry.fingerprint)
      .Text(19, ToRow(job.retry.avoided))
      .Int(20, job.retry.free_failures)
      .Int(21, job.retry.fell_back ? 1 : 0)
      .Text(22, job.id.value());
  ASSIGN_OR_RETURN(const int64_t changed, query.Run());
  if (changed == 0) return absl::NotFoundError(absl::StrCat("job ", job.id.value(), " is gone"));
  tx.changes.jobs.insert(job.id);
  tx.changes.scheduling_jobs.insert(job.id);
  return absl::OkStatus();
}

absl::Status MoveJob(Transaction& tx, JobRecord& job, const JobMove& move) {
  if (!IsLegal(job.state, move.to)) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "ILLEGAL_TRANSITION",
                     absl::StrCat("move job ", job.id.value(), ": from ", Name(job.state), " to ",
                                  Name(move.to), " is not a legal transition"),
                     {{"from", std::string(Name(job.state))}, {"to", std::string(Name(move.to))}});
  }
  JobChange change;
  change.job = job.id;
  change.from = job.state;
  change.to = move.to;
  change.attempt = job.current_attempt;
  change.since_update = tx.now - job.update_time;
  change.since_create = tx.now - job.create_time;
  if (move.failure) change.failure = move.failure->reason;

  job.state = move.to;
  job.message = move.message;
  job.stop_target = move.to == JobState::kStopping ? move.stop_target : StopTarget::kNone;
  job.stop_reason = move.to == JobState::kStopping ? move.stop_reason : StopReason::kNone;
  job.pending = move.to == JobState::kQueued ? move.pending : PendingReason::kNone;
  job.backoff = move.to == JobState::kQueued ? move.backoff : absl::ZeroDuration();
  if (move.to == JobState::kFailed) {
    job.failure = move.failure ? *move.failure : FailureRecord{};
  }
  if (move.to == JobState::kRunning && !job.start_time) job.start_time = tx.now;
  if (IsFinal(move.to)) job.end_time = tx.now;
  RETURN_IF_ERROR(UpdateJob(tx, job));
  RETURN_IF_ERROR(AddEvent(tx, job, "STATE", move.message));
  const bool live = move.to == JobState::kStarting || move.to == JobState::kRunning ||
                    move.to == JobState::kStopping;
  if (!live) RETURN_IF_ERROR(ClearConditions(tx, job));
  tx.changes.schedule = true;
  tx.changes.job_changes.push_back(std::move(change));
  return absl::OkStatus();
}

absl::StatusOr<JobRecord> Store::CreateJob(const JobRecord& job, const RequestKey& key) {
  JobRecord stored;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(absl::optional<JobRecord> repeated, FindRepeated(tx, key));
    if (repeated) {
      stored = *std::move(repeated);
      return absl::OkStatus();
    }
    if (tx.low_space) {
      return MakeError(absl::StatusCode::kUnavailable, "STORAGE_READ_ONLY",
                       absl::StrCat("create job ", job.id.value(),
                                    ": the disk of the coordinator's state folder is full; jobs "
                                    "that are there go on"));
    }
    if (LoadJob(tx.db, job.id).ok()) {
      return MakeError(absl::StatusCode::kAlreadyExists, "JOB_EXISTS",
                       absl::StrCat("create job ", job.id.value(), ": a job has this name"),
                       {{"job", job.id.value()}});
    }
    RETURN_IF_ERROR(InsertJob(tx, job));
    tx.changes.scheduling_jobs.insert(job.id);
    ASSIGN_OR_RETURN(stored, LoadJob(tx.db, job.id));
    RETURN_IF_ERROR(Remember(tx, key, job.id));
    RETURN_IF_ERROR(AddEvent(tx, stored, "STATE", "the job is stored"));
    JobChange change;
    change.job = job.id;
    change.to = stored.state;
    tx.changes.job_changes.push_back(std::move(change));
    tx.changes.schedule = true;
    return absl::OkStatus();
  }));
  return stored;
}

absl::Status StopGang(Transaction& tx, JobRecord& job, StopTarget target, StopReason reason,
                      absl::Duration grace, const std::string& message) {
  job.stop_grace = grace;
  JobMove move{JobState::kStopping, message, target};
  move.stop_reason = reason;
  RETURN_IF_ERROR(MoveJob(tx, job, move));
  const AttemptId attempt{job.id, job.current_attempt};
  {
    ASSIGN_OR_RETURN(Query query, tx.db.Prepare("UPDATE attempts SET stop_reason = ? WHERE job = ? "
                                                "AND number = ? AND state < 6"));
    query.Bind(reason, job.id.value(), attempt.number);
    RETURN_IF_ERROR(query.Run().status());
  }
  RETURN_IF_ERROR(AdvanceGang(tx, attempt));
  ASSIGN_OR_RETURN(job, LoadJob(tx.db, job.id));
  return absl::OkStatus();
}

namespace {

absl::Status JobFinal(const JobRecord& job, absl::string_view verb) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "JOB_FINAL",
                   absl::StrCat(verb, " job ", job.id.value(), ": it is already ", Name(job.state)),
                   {{"job", job.id.value()}, {"state", std::string(Name(job.state))}});
}

// Where a stopping job goes now, after a later order; the gang hears of a shorter grace period.
absl::Status Redirect(Transaction& tx, JobRecord& job, StopTarget target, absl::Duration grace,
                      const std::string& message) {
  const bool shorter = grace < job.stop_grace;
  if (job.stop_target == target && !shorter) return absl::OkStatus();
  const bool news = job.stop_target != target;
  job.stop_target = target;
  job.stop_reason = StopReason::kUser;
  job.stop_grace = std::min(job.stop_grace, grace);
  job.message = message;
  RETURN_IF_ERROR(UpdateJob(tx, job));
  ASSIGN_OR_RETURN(const auto placements, LoadPlacements(tx.db, {job.id, job.current_attempt}));
  for (const PlacementRecord& p : placements) tx.changes.nodes.insert(p.node);
  return news ? AddEvent(tx, job, "STATE", message) : absl::OkStatus();
}

absl::Status Cancel(Transaction& tx, JobRecord job, absl::Duration grace) {
  const std::string message = "cancelled by the user";
  switch (job.state) {
    case JobState::kValidating:
    case JobState::kQueued:
    case JobState::kPaused:
      return MoveJob(tx, job, {JobState::kCancelled, message});
    case JobState::kStarting:
    case JobState::kRunning:
      return StopGang(tx, job, StopTarget::kCancelled, StopReason::kUser, grace, message);
    case JobState::kStopping:
      return Redirect(tx, job, StopTarget::kCancelled, grace, message);
    case JobState::kCancelled:
      return absl::OkStatus();
    case JobState::kSucceeded:
    case JobState::kFailed:
      break;
  }
  return JobFinal(job, "cancel");
}

absl::Status Pause(Transaction& tx, JobRecord job, absl::Duration grace) {
  const std::string message = "paused by the user";
  const bool holds_devices = job.state == JobState::kStarting || job.state == JobState::kRunning;
  if (holds_devices && !job.needs.resumable) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NOT_RESUMABLE",
                     absl::StrCat("pause job ", job.id.value(),
                                  ": its checkpoints lack the optimizer's state "
                                  "(checkpoint.save_optimizer), so that it would start over"),
                     {{"job", job.id.value()}});
  }
  switch (job.state) {
    case JobState::kQueued:
      return MoveJob(tx, job, {JobState::kPaused, message});
    case JobState::kStarting:
    case JobState::kRunning:
      return StopGang(tx, job, StopTarget::kPaused, StopReason::kUser, grace, message);
    case JobState::kStopping:
      // An order that ends the job is stronger.
      return job.stop_target == StopTarget::kQueued
                 ? Redirect(tx, job, StopTarget::kPaused, job.stop_grace, message)
                 : absl::OkStatus();
    case JobState::kPaused:
      return absl::OkStatus();
    case JobState::kValidating:
      return MakeError(absl::StatusCode::kFailedPrecondition, "JOB_VALIDATING",
                       absl::StrCat("pause job ", job.id.value(), ": its data is being checked"));
    case JobState::kSucceeded:
    case JobState::kFailed:
    case JobState::kCancelled:
      break;
  }
  return JobFinal(job, "pause");
}

absl::Status Resume(Transaction& tx, JobRecord job) {
  const std::string message = "resumed by the user";
  if (IsFinal(job.state)) return JobFinal(job, "resume");
  if (job.state == JobState::kPaused) return MoveJob(tx, job, {JobState::kQueued, message});
  if (job.state == JobState::kStopping && job.stop_target == StopTarget::kPaused) {
    return Redirect(tx, job, StopTarget::kQueued, job.stop_grace, message);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JobRecord> Store::ChangeJob(
    const JobId& id, const RequestKey& key,
    const std::function<absl::Status(Transaction&, JobRecord)>& change) {
  JobRecord stored;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(absl::optional<JobRecord> repeated, FindRepeated(tx, key));
    if (repeated) {
      stored = *std::move(repeated);
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(JobRecord job, LoadJob(tx.db, id));
    RETURN_IF_ERROR(change(tx, std::move(job)));
    RETURN_IF_ERROR(Remember(tx, key, id));
    ASSIGN_OR_RETURN(stored, LoadJob(tx.db, id));
    return absl::OkStatus();
  }));
  return stored;
}

absl::StatusOr<JobRecord> Store::CancelJob(const JobId& id, absl::Duration grace,
                                           const RequestKey& key) {
  return ChangeJob(
      id, key, [&](Transaction& tx, JobRecord job) { return Cancel(tx, std::move(job), grace); });
}

absl::StatusOr<JobRecord> Store::PauseJob(const JobId& id, absl::Duration grace,
                                          const RequestKey& key) {
  return ChangeJob(
      id, key, [&](Transaction& tx, JobRecord job) { return Pause(tx, std::move(job), grace); });
}

absl::StatusOr<JobRecord> Store::ResumeJob(const JobId& id, const RequestKey& key) {
  return ChangeJob(id, key,
                   [](Transaction& tx, JobRecord job) { return Resume(tx, std::move(job)); });
}

}  // namespace switchyard
