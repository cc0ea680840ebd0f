// Checkpoints: the rows around a publication and a deletion, and reads of them.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/error.h"
#include "server/retention.h"
#include "server/store/rows.h"
#include "server/store/transaction.h"

namespace switchyard {
namespace {

absl::StatusOr<absl::optional<CheckpointRecord>> FindCheckpoint(Database& db, const JobId& job,
                                                                int64_t step) {
  ASSIGN_OR_RETURN(Query query, db.Prepare(absl::StrCat("SELECT ", kCheckpointColumns,
                                                        " FROM checkpoints WHERE job = ? AND "
                                                        "step = ?")));
  ASSIGN_OR_RETURN(const bool found, query.Bind(job.value(), step).Step());
  if (!found) return absl::optional<CheckpointRecord>();
  return absl::optional<CheckpointRecord>(ReadCheckpoint(query));
}

absl::Status PutCheckpoint(Transaction& tx, const CheckpointRecord& c) {
  ASSIGN_OR_RETURN(Query query, tx.db.Prepare("INSERT OR REPLACE INTO checkpoints VALUES "
                                              "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"));
  // SQLite stores NaN as NULL.
  query.Bind(c.job.value(), c.step, c.attempt, c.state, c.path, c.staging_path, c.manifest_crc32c,
             c.size_bytes, c.loss, c.validation_loss, c.final, ToRow(c.create_time), c.commit_seq,
             c.pinned);
  return query.Run().status();
}

// Errors: NotFound CHECKPOINT_NOT_FOUND: none, or one that is not (or no longer) committed.
absl::StatusOr<CheckpointRecord> LoadCommitted(Database& db, const JobId& job, int64_t step) {
  RETURN_IF_ERROR(LoadJob(db, job).status());
  ASSIGN_OR_RETURN(absl::optional<CheckpointRecord> row, FindCheckpoint(db, job, step));
  if (row && row->state == CheckpointState::kCommitted) return *std::move(row);
  const bool deleted =
      row && (row->state == CheckpointState::kDeleting || row->state == CheckpointState::kDeleted);
  return MakeError(absl::StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND",
                   absl::StrCat("job ", job.value(), " has no checkpoint of step ", step,
                                deleted ? ": it was deleted" : ""),
                   {{"job", job.value()}, {"step", absl::StrCat(step)}});
}

// Who reads the checkpoint's files, or may do so at any time, in words; empty: nobody.
absl::StatusOr<std::string> UserOf(Database& db, const CheckpointRecord& c, const IsHeld& is_held) {
  {
    ASSIGN_OR_RETURN(Query query,
                     db.Prepare("SELECT number FROM attempts WHERE job = ? AND "
                                "state < 6 AND resume_from = ? AND resume_from <> ''"));
    ASSIGN_OR_RETURN(const bool found, query.Bind(c.job.value(), c.path).Step());
    if (found) return absl::StrCat("attempt ", query.IntAt(0), " of the job resumed from it");
  }
  {
    ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT name FROM jobs WHERE restore_from = ? AND "
                                             "restore_from <> '' AND state < 7"));
    ASSIGN_OR_RETURN(const bool found, query.Bind(c.path).Step());
    if (found) return absl::StrCat("job ", query.TextAt(0), " starts from it");
  }
  if (is_held && is_held(c)) return std::string("it is being downloaded");
  return std::string();
}

// Nobody may use it from here on.
absl::Status MarkDeleting(Transaction& tx, const JobRecord& job, CheckpointRecord& c,
                          const std::string& why, bool by_request) {
  c.state = CheckpointState::kDeleting;
  c.pinned = false;
  RETURN_IF_ERROR(PutCheckpoint(tx, c));
  tx.changes.checkpoints.push_back({c.job, c.step, c.state, c.size_bytes, by_request});
  return AddEvent(tx, job, "CHECKPOINT",
                  absl::StrCat("checkpoint of step ", c.step, " deleted: ", why));
}

std::string Describe(const RetentionRule& rule) {
  return absl::StrCat(
      "kept are the last ", rule.keep_last,
      rule.keep_every > 0 ? absl::StrCat(", those of every ", rule.keep_every, " steps") : "",
      rule.keep_best > 0 ? absl::StrCat(", the best ", rule.keep_best) : "");
}

}  // namespace

absl::StatusOr<CheckpointRecord> Store::BeginCheckpoint(const NodeId& node,
                                                        const Incarnation& incarnation,
                                                        const CheckpointRecord& checkpoint) {
  CheckpointRecord stored;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    RETURN_IF_ERROR(CheckIncarnation(tx.db, node, incarnation));
    RETURN_IF_ERROR(LoadOpenPlacement(tx.db, node, {checkpoint.job, checkpoint.attempt}).status());
    ASSIGN_OR_RETURN(absl::optional<CheckpointRecord> before,
                     FindCheckpoint(tx.db, checkpoint.job, checkpoint.step));
    if (before && before->state == CheckpointState::kCommitted) {
      stored = *before;
      if (!checkpoint.final || before->final) return absl::OkStatus();
      // The same step again, now as the last one: the weights are there already.
      stored.final = true;
      return PutCheckpoint(tx, stored);
    }
    stored = checkpoint;
    stored.state = CheckpointState::kCommitting;
    stored.pinned = before && before->pinned;
    stored.create_time = tx.now;
    return PutCheckpoint(tx, stored);
  }));
  return stored;
}

absl::StatusOr<CheckpointRecord> Store::EndCheckpoint(const CheckpointRecord& checkpoint,
                                                      const absl::Status& error) {
  CheckpointRecord stored;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(absl::optional<CheckpointRecord> row,
                     FindCheckpoint(tx.db, checkpoint.job, checkpoint.step));
    if (!row || row->attempt != checkpoint.attempt) {
      return absl::AbortedError(absl::StrCat("commit checkpoint of job ", checkpoint.job.value(),
                                             ", step ", checkpoint.step,
                                             ": another attempt has taken the step over"));
    }
    stored = *row;
    if (stored.state != CheckpointState::kCommitting) return absl::OkStatus();  // a repeated call
    stored.state = error.ok() ? CheckpointState::kCommitted : CheckpointState::kDropped;
    stored.size_bytes = checkpoint.size_bytes;
    if (error.ok()) {
      ASSIGN_OR_RETURN(Query query,
                       tx.db.Prepare("SELECT max(commit_seq) FROM checkpoints WHERE job = ?"));
      RETURN_IF_ERROR(query.Bind(stored.job.value()).Step().status());
      stored.commit_seq = query.IntAt(0) + 1;
      tx.changes.checkpoints.push_back(
          {stored.job, stored.step, stored.state, stored.size_bytes, false});
    }
    RETURN_IF_ERROR(PutCheckpoint(tx, stored));
    ASSIGN_OR_RETURN(JobRecord job, LoadJob(tx.db, checkpoint.job));
    // A plan made before knows an older checkpoint to resume from.
    RETURN_IF_ERROR(UpdateJob(tx, job));
    return AddEvent(
        tx, job, "CHECKPOINT",
        error.ok()
            ? absl::StrCat("checkpoint of step ", stored.step, stored.final ? " (final)" : "",
                           " committed: ", stored.path)
            : absl::StrCat("checkpoint of step ", stored.step, " dropped: ", error.message()));
  }));
  return stored;
}

absl::Status DropCheckpoint(Transaction& tx, CheckpointRecord checkpoint, const std::string& why) {
  checkpoint.state = CheckpointState::kDropped;
  RETURN_IF_ERROR(PutCheckpoint(tx, checkpoint));
  tx.changes.checkpoints.push_back(
      {checkpoint.job, checkpoint.step, checkpoint.state, checkpoint.size_bytes, false});
  ASSIGN_OR_RETURN(const JobRecord job, LoadJob(tx.db, checkpoint.job));
  return AddEvent(tx, job, "WARNING",
                  absl::StrCat("CHECKPOINT_REJECTED: the checkpoint of step ", checkpoint.step,
                               " will not be used: ", why));
}

absl::Status Store::RejectCheckpoint(const CheckpointRecord& checkpoint, const std::string& why) {
  return Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(absl::optional<CheckpointRecord> row,
                     FindCheckpoint(tx.db, checkpoint.job, checkpoint.step));
    // Committed anew since, or rejected before.
    if (!row || row->state != CheckpointState::kCommitted ||
        row->commit_seq != checkpoint.commit_seq) {
      return absl::OkStatus();
    }
    return DropCheckpoint(tx, *row, why);
  });
}

absl::StatusOr<std::vector<CheckpointRecord>> Store::RetireCheckpoints(const JobId& id,
                                                                       const IsHeld& is_held) {
  std::vector<CheckpointRecord> retired;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    retired.clear();
    ASSIGN_OR_RETURN(const JobRecord job, LoadJob(tx.db, id));
    const RetentionRule& rule = job.needs.retention;
    if (rule.keep_last <= 0) return absl::OkStatus();
    std::vector<CheckpointRecord> committed;
    {
      ASSIGN_OR_RETURN(Query query, tx.db.Prepare(absl::StrCat(
                                        "SELECT ", kCheckpointColumns,
                                        " FROM checkpoints WHERE job = ? AND state = ?")));
      query.Bind(id.value(), CheckpointState::kCommitted);
      while (true) {
        ASSIGN_OR_RETURN(const bool row, query.Step());
        if (!row) break;
        committed.push_back(ReadCheckpoint(query));
      }
    }
    for (CheckpointRecord& c : ChooseRetired(rule, std::move(committed))) {
      ASSIGN_OR_RETURN(const std::string user, UserOf(tx.db, c, is_held));
      if (!user.empty()) continue;
      RETURN_IF_ERROR(MarkDeleting(tx, job, c, Describe(rule), /*by_request=*/false));
      retired.push_back(std::move(c));
    }
    return absl::OkStatus();
  }));
  return retired;
}

absl::StatusOr<CheckpointRecord> Store::BeginDeletion(const JobId& id, int64_t step,
                                                      const DeletionRequest& request,
                                                      const IsHeld& is_held) {
  CheckpointRecord stored;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(const JobRecord job, LoadJob(tx.db, id));
    ASSIGN_OR_RETURN(absl::optional<CheckpointRecord> row, FindCheckpoint(tx.db, id, step));
    if (row &&
        (row->state == CheckpointState::kDeleting || row->state == CheckpointState::kDeleted)) {
      stored = *std::move(row);
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(stored, LoadCommitted(tx.db, id, step));
    const std::string what =
        absl::StrCat("delete the checkpoint of step ", step, " of job ", id.value(), ": ");
    if (stored.pinned) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "CHECKPOINT_PINNED",
                       absl::StrCat(what, "it is pinned"), {{"step", absl::StrCat(step)}});
    }
    if (stored.final && !request.final) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "CHECKPOINT_FINAL",
                       absl::StrCat(what,
                                    "it is the job's result; say so to delete it all the "
                                    "same"),
                       {{"step", absl::StrCat(step)}});
    }
    ASSIGN_OR_RETURN(std::string user, UserOf(tx.db, stored, is_held));
    // Without it the job could not end well.
    if (stored.final && !IsFinal(job.state)) user = absl::StrCat("the job is ", Name(job.state));
    if (!user.empty()) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "CHECKPOINT_IN_USE",
                       absl::StrCat(what, user), {{"step", absl::StrCat(step)}, {"user", user}});
    }
    RETURN_IF_ERROR(AddAudit(tx, request.actor, "DeleteCheckpoint",
                             absl::StrCat(id.value(), "/checkpoints/step-", step), ""));
    return MarkDeleting(tx, job, stored, "asked for", /*by_request=*/true);
  }));
  return stored;
}

absl::Status Store::EndDeletion(const CheckpointRecord& checkpoint) {
  return Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(Query query,
                     tx.db.Prepare("UPDATE checkpoints SET state = ? WHERE job = ? AND "
                                   "step = ? AND state = ? AND commit_seq = ?"));
    return query
        .Bind(CheckpointState::kDeleted, checkpoint.job.value(), checkpoint.step,
              CheckpointState::kDeleting, checkpoint.commit_seq)
        .Run()
        .status();
  });
}

absl::StatusOr<bool> Store::IsStill(const CheckpointRecord& checkpoint) {
  bool same = false;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(const absl::optional<CheckpointRecord> row,
                     FindCheckpoint(db, checkpoint.job, checkpoint.step));
    same = row && row->state == checkpoint.state && row->commit_seq == checkpoint.commit_seq;
    return absl::OkStatus();
  }));
  return same;
}

absl::StatusOr<CheckpointRecord> Store::SetPinned(const JobId& id, int64_t step, bool pinned,
                                                  const std::string& actor) {
  CheckpointRecord stored;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(const JobRecord job, LoadJob(tx.db, id));
    ASSIGN_OR_RETURN(stored, LoadCommitted(tx.db, id, step));
    if (stored.pinned == pinned) return absl::OkStatus();
    stored.pinned = pinned;
    RETURN_IF_ERROR(PutCheckpoint(tx, stored));
    RETURN_IF_ERROR(AddAudit(tx, actor, pinned ? "PinCheckpoint" : "UnpinCheckpoint",
                             absl::StrCat(id.value(), "/checkpoints/step-", step), ""));
    return AddEvent(
        tx, job, "CHECKPOINT",
        absl::StrCat("checkpoint of step ", step, pinned ? " pinned" : " no longer pinned"));
  }));
  return stored;
}

absl::StatusOr<CheckpointRecord> Store::GetCheckpoint(const JobId& id, int64_t step) {
  absl::StatusOr<CheckpointRecord> checkpoint;
  RETURN_IF_ERROR(Read([&](Database& db) {
    checkpoint = LoadCommitted(db, id, step);
    return checkpoint.status();
  }));
  return checkpoint;
}

absl::StatusOr<std::vector<JobId>> Store::JobsToRetireFrom() {
  std::vector<JobId> jobs;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query,
                     db.Prepare("SELECT c.job FROM checkpoints c JOIN jobs j ON j.name = c.job "
                                "WHERE c.state = ? AND j.keep_last > 0 GROUP BY c.job "
                                "HAVING count(*) > max(j.keep_last)"));
    query.Bind(CheckpointState::kCommitted);
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::OkStatus();
      jobs.push_back(JobId(query.TextAt(0)));
    }
  }));
  return jobs;
}

absl::StatusOr<CheckpointTotals> Store::TotalCheckpoints() {
  CheckpointTotals totals;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT count(*), coalesce(sum(size_bytes), 0) FROM "
                                             "checkpoints WHERE state = ?"));
    RETURN_IF_ERROR(query.Bind(CheckpointState::kCommitted).Step().status());
    totals = {query.IntAt(0), query.IntAt(1)};
    return absl::OkStatus();
  }));
  return totals;
}

absl::StatusOr<std::vector<CheckpointRecord>> Store::ListCheckpoints(const JobId& id,
                                                                     int64_t before_step,
                                                                     int limit) {
  std::vector<CheckpointRecord> out;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query,
                     db.Prepare(absl::StrCat("SELECT ", kCheckpointColumns,
                                             " FROM checkpoints WHERE job = ? AND state = ? AND "
                                             "(? = 0 OR step < ?) ORDER BY step DESC LIMIT ?")));
    query.Bind(id.value(), CheckpointState::kCommitted, before_step, before_step, limit);
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::OkStatus();
      out.push_back(ReadCheckpoint(query));
    }
  }));
  return out;
}

absl::StatusOr<std::vector<CheckpointRecord>> Store::CheckpointsIn(CheckpointState state) {
  std::vector<CheckpointRecord> out;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query, db.Prepare(absl::StrCat("SELECT ", kCheckpointColumns,
                                                          " FROM checkpoints WHERE state = ?")));
    query.Bind(state);
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::OkStatus();
      out.push_back(ReadCheckpoint(query));
    }
  }));
  return out;
}

}  // namespace switchyard
