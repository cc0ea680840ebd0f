// Writes about checkpoints: the rows around a publication.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
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
                                              "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"));
  // SQLite stores NaN as NULL.
  query.Bind(c.job.value(), c.step, c.attempt, c.state, c.path, c.staging_path, c.manifest_crc32c,
             c.size_bytes, c.loss, c.validation_loss, c.final, ToRow(c.create_time), c.commit_seq);
  return query.Run().status();
}

// The checkpoint that the job's open attempt resumed from; empty: none.
absl::StatusOr<std::string> OpenResumePath(Database& db, const JobId& job) {
  ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT resume_from FROM attempts WHERE job = ? AND "
                                           "state < 6"));
  ASSIGN_OR_RETURN(const bool found, query.Bind(job.value()).Step());
  return found ? query.TextAt(0) : std::string();
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
      tx.changes.committed_steps.push_back({stored.job, stored.step});
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

absl::StatusOr<std::vector<CheckpointRecord>> Store::RetireCheckpoints(const JobId& id) {
  std::vector<CheckpointRecord> retired;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    retired.clear();
    ASSIGN_OR_RETURN(const JobRecord job, LoadJob(tx.db, id));
    if (job.needs.keep_last <= 0) return absl::OkStatus();
    {
      // By commit, not by step: what a retry from an earlier step commits is the newest.
      ASSIGN_OR_RETURN(Query query, tx.db.Prepare(absl::StrCat(
                                        "SELECT ", kCheckpointColumns,
                                        " FROM checkpoints WHERE job = ? AND state = ? ORDER BY "
                                        "commit_seq DESC LIMIT -1 OFFSET ?")));
      query.Bind(id.value(), CheckpointState::kCommitted, job.needs.keep_last);
      while (true) {
        ASSIGN_OR_RETURN(const bool row, query.Step());
        if (!row) break;
        retired.push_back(ReadCheckpoint(query));
      }
    }
    ASSIGN_OR_RETURN(const std::string in_use, OpenResumePath(tx.db, id));
    if (!in_use.empty()) {
      retired.erase(std::remove_if(retired.begin(), retired.end(),
                                   [&](const CheckpointRecord& c) { return c.path == in_use; }),
                    retired.end());
    }
    for (CheckpointRecord& c : retired) {
      c.state = CheckpointState::kDeleted;
      RETURN_IF_ERROR(PutCheckpoint(tx, c));
    }
    return absl::OkStatus();
  }));
  return retired;
}

}  // namespace switchyard
