// Inside one write: the connection, the time, what changes. And the moves that all writes are made
// of, which check the tables of job_state.h.
#ifndef SWITCHYARD_SERVER_STORE_TRANSACTION_H_
#define SWITCHYARD_SERVER_STORE_TRANSACTION_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/records.h"
#include "server/store/database.h"
#include "server/store/store.h"

namespace switchyard {

struct Transaction {
  Database& db;
  absl::Time now;
  absl::Duration retry_backoff;
  ChangeSet changes;
  bool low_space = false;  // the ballast is gone: only what already runs is recorded
};

struct JobMove {
  JobState to;
  std::string message = {};
  StopTarget stop_target = StopTarget::kNone;             // for STOPPING
  StopReason stop_reason = StopReason::kNone;             // for STOPPING
  absl::optional<FailureRecord> failure = absl::nullopt;  // for FAILED
  PendingReason pending = PendingReason::kNone;           // for QUEUED
  absl::Duration backoff = absl::ZeroDuration();          // for QUEUED
};
// Moves the job and writes its STATE event; `job` becomes what is stored.
// Errors: FailedPrecondition: not in the table.
absl::Status MoveJob(Transaction& tx, JobRecord& job, const JobMove& move);

// Moves the attempt, writes its ATTEMPT event, and lets go of devices as parts end.
// Errors: FailedPrecondition: not in the table.
absl::Status MoveAttempt(Transaction& tx, const JobRecord& job, AttemptRecord& attempt,
                         AttemptState to, const absl::optional<FailureRecord>& failure,
                         const std::string& message);

// Moves a job that is STARTING or RUNNING to STOPPING and tells its gang.
absl::Status StopGang(Transaction& tx, JobRecord& job, StopTarget target, StopReason reason,
                      absl::Duration grace, const std::string& message);

// Ends all conditions of a job that has no live attempt any more, with an event each.
absl::Status ClearConditions(Transaction& tx, const JobRecord& job);

// A committed checkpoint that nothing will resume from, with its event.
absl::Status DropCheckpoint(Transaction& tx, CheckpointRecord checkpoint, const std::string& why);

// One row of the audit log.
absl::Status AddAudit(Transaction& tx, const std::string& actor, absl::string_view action,
                      const std::string& target, const std::string& message);

// Stores phase, port and outcome; a part that ended lets go of its devices.
absl::Status UpdatePlacement(Transaction& tx, const PlacementRecord& p);

// Takes every hop that is due (lifecycle.h).
absl::Status AdvanceGang(Transaction& tx, const AttemptId& id);

absl::Status AddEvent(Transaction& tx, const JobRecord& job, absl::string_view kind,
                      absl::string_view message);

// Stores the mutable columns of `job` with version + 1. Errors: NotFound.
absl::Status UpdateJob(Transaction& tx, JobRecord& job);

absl::StatusOr<JobRecord> LoadJob(Database& db, const JobId& id);  // Errors: NotFound
absl::StatusOr<AttemptRecord> LoadAttempt(Database& db, const AttemptId& id);
absl::StatusOr<std::vector<PlacementRecord>> LoadPlacements(Database& db, const AttemptId& id);
// Aborted STALE_INCARNATION unless `incarnation` is the node's stored one.
absl::Status CheckIncarnation(Database& db, const NodeId& node, const Incarnation& incarnation);
// Errors: NotFound NODE_NOT_FOUND.
absl::StatusOr<NodeRecord> LoadNode(Database& db, const NodeId& node);
// Attempts with an open part on the node, oldest job first.
absl::StatusOr<std::vector<AttemptId>> OpenAttemptsOf(Database& db, const NodeId& node);
// The node is gone for good: closes its parts of all attempts.
absl::Status LoseNode(Transaction& tx, const NodeId& node, const std::string& why);
// The node's open part of the attempt. Errors: Aborted STALE_ATTEMPT.
absl::StatusOr<PlacementRecord> LoadOpenPlacement(Database& db, const NodeId& node,
                                                  const AttemptId& id);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_TRANSACTION_H_
