// The coordinator's memory: one SQLite database, one transaction per transition.
//
// Writes run on one thread, which also makes every WAL checkpoint; those waiting at the same time
// share one commit (and its fsync). A write answers only after its commit. Reads run on the
// caller's thread over a few read-only connections. Thread-safe.
//
// Every change of state is stored together with its event, before anything outside happens. Whoever
// acts on changes (orders to agents, watchers, metrics) is told after the commit.
//
// Errors of all writes, besides those named: ResourceExhausted STORAGE_READ_ONLY: the disk is full,
// nothing was stored. After an I/O error or damage `on_fatal` is called instead of going on.
#ifndef SWITCHYARD_SERVER_STORE_STORE_H_
#define SWITCHYARD_SERVER_STORE_STORE_H_

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/fd.h"
#include "server/plan.h"
#include "server/records.h"
#include "server/snapshot.h"

namespace switchyard {

class Database;
class Writer;
struct Transaction;

// What a commit changed, for those who act on it.
struct JobChange {
  JobId job;
  absl::optional<JobState> from;  // none: created
  JobState to = JobState::kQueued;
  FailureReason failure = FailureReason::kNone;
  int32_t attempt = 0;
  absl::Duration since_update;  // of the job's last change
  absl::Duration since_create;
};
struct AttemptChange {
  AttemptId attempt;
  AttemptState to = AttemptState::kReserved;
  FailureReason failure = FailureReason::kNone;
};
struct StepChange {
  AttemptId attempt;
  int64_t step = 0;
  double step_seconds = 0;
  int32_t slow_rank = -1;
  double slow_ratio = 0;
};
// What may show that a node comes and goes.
enum class NodeSignalKind {
  kRegistered,  // a session began; the agent is the same
  kRestarted,   // another life of the agent took over: its machine booted, or its folder was lost
  kLost,        // its lease expired
  kBroken,      // hardware failed under an attempt there
  kResumed,     // an operator says that it is well
};
struct NodeSignal {
  NodeId node;
  NodeSignalKind kind = NodeSignalKind::kRegistered;
};
// A checkpoint was committed, rejected after that (kDropped), or given up for deletion.
struct CheckpointChange {
  JobId job;
  int64_t step = 0;
  CheckpointState to = CheckpointState::kCommitted;
  int64_t size_bytes = 0;
  bool by_request = false;  // of a deletion: a user's, not retention's
};
struct ChangeSet {
  std::set<JobId> jobs;               // records, events, steps or logs
  std::set<NodeId> nodes;             // orders
  bool schedule = false;              // something to place, or room to place it
  std::set<JobId> scheduling_jobs;    // of `jobs`, those whose row or devices changed
  std::set<NodeId> scheduling_nodes;  // whose own row changed
  std::vector<StepChange> steps;
  std::vector<CheckpointChange> checkpoints;
  std::vector<JobChange> job_changes;
  std::vector<AttemptChange> attempt_changes;
  std::vector<NodeSignal> node_signals;
  int64_t stale_reports = 0;
  void Merge(ChangeSet&& other);
};

struct StoreOptions {
  std::string folder;  // holds switchyard.db and lock
  int num_readers = 2;
  // First wait after a failure that is worth a retry.
  absl::Duration retry_backoff = absl::Seconds(10);
  // An I/O error or damage. Default: exits with 70. Should it return, every later write is refused
  // with the same error.
  std::function<void(const absl::Status&)> on_fatal;
  // Called with the seconds that each commit took.
  std::function<void(double)> on_commit_seconds;
  // Space that is freed when the disk is full, or an eighth of the file system if that is less.
  // From then on, until there is room again, no job is accepted; what runs is recorded. 0: none.
  int64_t ballast_bytes = 0;
  // Only tests: called on the writer before each statement; an error is the statement's result.
  std::function<absl::Status(absl::string_view sql)> statement_hook;
  // Only the simulation: no thread; a write runs on its caller's, which must be the only one.
  bool inline_writes = false;
};

// Makes a repeated call answer as the first one did.
struct RequestKey {
  std::string project;
  std::string method;
  std::string request_id;  // empty: not idempotent
  std::string payload;     // the whole request, in a canonical form
};

struct JobFilter {
  std::string project;
  std::vector<JobState> states;  // empty: all
  std::map<std::string, std::string> labels;
  int64_t before_seq = 0;  // 0: from the newest
  int limit = 50;
};

// Where a reader of a job's history stands.
struct HistoryPosition {
  int64_t event = 0;    // job_seq
  int64_t step_id = 0;  // steps in the order of their arrival
  // Of the steps up to this id, only those with a number past replay_after_step are wanted.
  int64_t replay_until_id = 0;
  int64_t replay_after_step = 0;
};
struct History {
  std::vector<EventRecord> events;
  std::vector<StepRecord> steps;
};

struct Reservation {
  NodeId node;
  int32_t device = 0;
  AttemptId attempt;
};

// What may be deleted at a user's wish.
struct DeletionRequest {
  std::string actor;
  bool final = false;  // also the final one, which is the job's result
};
// Whether files of the checkpoint are being read, so that it must stay. On the writer's thread.
using IsHeld = std::function<bool(const CheckpointRecord&)>;

struct CheckpointTotals {
  int64_t count = 0;
  int64_t bytes = 0;
};

struct RegisterResult {
  int64_t acknowledged_report = 0;
  std::vector<AttemptId> stale;
};
struct ReportResult {
  int64_t acknowledged = 0;
  std::vector<AttemptId> stale;
};

class Store {
 public:
  // Locks the folder, checks and migrates the database, and counts the coordinator's epoch up.
  // Errors: FailedPrecondition: another switchyardd holds the folder, or a newer one wrote it;
  // DataLoss: the file is damaged (with what to do).
  static absl::StatusOr<std::unique_ptr<Store>> Open(StoreOptions options, Clock& clock);
  ~Store();

  // Whether this SQLite has the WAL-reset bug that the split of readers and writer avoids.
  static bool SqliteHasWalResetBug();

  int64_t epoch() const { return epoch_; }
  // Another one after a restore.
  const std::string& database_uuid() const { return uuid_; }
  // The database was restored: nodes may still run what it knows nothing of. Nothing may be placed
  // until every lease of the time before has ended; then EndRestoreHold.
  bool held_after_restore() const { return held_after_restore_ != 0; }
  absl::Status EndRestoreHold();

  // The id of the artifact root (artifact_root.h); empty: it has none yet. Set at start only.
  const std::string& artifact_root_id() const { return artifact_root_id_; }
  absl::Status SetArtifactRootId(const std::string& id);

  // Who is told of commits, on the writer's thread, in the order of the calls. Lives as long as the
  // store.
  void Subscribe(std::function<void(const ChangeSet&)> listener);

  // --- jobs -------------------------------------------------------------------------------------
  // `job` without seq. Errors: AlreadyExists JOB_EXISTS; InvalidArgument IDEMPOTENCY_KEY_REUSED.
  absl::StatusOr<JobRecord> CreateJob(const JobRecord& job, const RequestKey& key);
  // Errors: NotFound; FailedPrecondition JOB_FINAL.
  absl::StatusOr<JobRecord> CancelJob(const JobId& id, absl::Duration grace, const RequestKey& key);
  // With a checkpoint. Errors: NotFound; FailedPrecondition JOB_FINAL or NOT_RESUMABLE.
  absl::StatusOr<JobRecord> PauseJob(const JobId& id, absl::Duration grace, const RequestKey& key);
  // Errors: NotFound; FailedPrecondition JOB_FINAL.
  absl::StatusOr<JobRecord> ResumeJob(const JobId& id, const RequestKey& key);
  absl::StatusOr<JobRecord> GetJob(const JobId& id);
  absl::StatusOr<std::vector<ConditionRecord>> ListConditions(const JobId& id);
  absl::StatusOr<std::vector<JobRecord>> ListJobs(const JobFilter& filter);
  absl::StatusOr<std::vector<AttemptRecord>> ListAttempts(const JobId& id);
  absl::StatusOr<AttemptRecord> GetAttempt(const AttemptId& id);  // without nodes; Errors: NotFound
  absl::StatusOr<std::vector<EventRecord>> ReadEvents(const JobId& id, int64_t after_job_seq,
                                                      int limit);
  // Events and steps after a position, at most so many of each (0: none), as of one moment: a step
  // comes after the event with its `after_event`, so that event is in the answer too, or before
  // `after`, or past `max_events`.
  absl::StatusOr<History> ReadHistory(const JobId& id, const HistoryPosition& after, int max_events,
                                      int max_steps);
  // The newest arrival; id 0: none yet.
  absl::StatusOr<StepRecord> LatestStep(const JobId& id);

  absl::StatusOr<std::map<JobState, int64_t>> CountJobs();

  // Removes events and steps, all but the last event, of one job that ended before; a part of them
  // when they are many. False: there was none.
  absl::StatusOr<bool> PruneHistory(absl::Time ended_before);
  // Forgets some calls of before that were about jobs which have ended. False: there were none.
  absl::StatusOr<bool> PruneRequests(absl::Time made_before);

  // --- scheduling -------------------------------------------------------------------------------
  absl::StatusOr<std::vector<JobRecord>> JobsIn(std::vector<JobState> states);  // oldest first
  absl::StatusOr<std::vector<Reservation>> Reservations();
  // Jobs that wait or hold devices, with their open parts; by id.
  absl::StatusOr<std::vector<JobView>> ViewJobs();
  // These jobs, whatever their states; those that are not there are left out.
  absl::StatusOr<std::vector<JobView>> ViewJobs(const std::set<JobId>& ids);
  // Adds to the time that each attempt has held devices; stops jobs that have reached their limit.
  absl::Status AddRunTime(const std::map<AttemptId, absl::Duration>& held);
  // Those about live jobs, with an event when one is set anew or cleared.
  absl::Status SetConditions(const std::vector<ConditionChange>& changes);
  // Carries out what still rests on the right versions; the rest is left for the next plan.
  absl::Status Apply(const Plan& plan);

  // --- agents -----------------------------------------------------------------------------------
  absl::StatusOr<std::vector<NodeRecord>> ListNodes();
  // Errors: NotFound NODE_NOT_FOUND.
  absl::StatusOr<NodeRecord> GetNode(const NodeId& node);
  absl::StatusOr<std::vector<AttemptId>> OpenAttempts(const NodeId& node);
  absl::StatusOr<int64_t> CountReservations(const NodeId& node);
  // An operator's act, with its audit row. Draining also stops the gangs on the node, to the queue.
  // Errors: NotFound NODE_NOT_FOUND.
  absl::StatusOr<NodeRecord> SetNodeScheduling(const NodeId& node, NodeScheduling scheduling,
                                               absl::Duration grace, const std::string& actor,
                                               const std::string& message);
  // A message holds the node from placement, an empty one releases it. Recorded in the audit log,
  // and told to the jobs that have a part there. Errors: NotFound NODE_NOT_FOUND.
  absl::Status SetQuarantine(const NodeId& node, const QuarantineRecord& quarantine);
  // The operator says that nothing runs there; the caller has made sure that it is not heard from.
  // Errors: NotFound NODE_NOT_FOUND.
  absl::StatusOr<NodeRecord> ConfirmNodeDead(const NodeId& node, const std::string& actor,
                                             const std::string& message);
  // Newest first; those before `before_seq` (0: all).
  absl::StatusOr<std::vector<AuditRecord>> ListAudit(int64_t before_seq, int limit);
  // The agent has taken up its registration: it believes in no lease longer than this any more.
  // Nothing, unless the node has this incarnation and a longer one.
  absl::Status SettleLease(const NodeId& node, const Incarnation& incarnation, absl::Duration ttl);
  // Stores the node; of one that is not lost and has not booted since, the longer lease stays. With
  // a new incarnation, parts that ran under the old one and are not in `live`
  // are lost; parts not yet started are prepared again.
  absl::StatusOr<RegisterResult> RegisterNode(const NodeRecord& node,
                                              const std::vector<AttemptId>& live);
  // All that the node should do now, oldest attempt first. Parts never sent before are marked as
  // sent. Errors: Aborted STALE_INCARNATION.
  absl::StatusOr<std::vector<OrderRecord>> TakeOrders(const NodeId& node,
                                                      const Incarnation& incarnation);
  // Of `live`, the attempts that have no open part on this node.
  absl::StatusOr<std::vector<AttemptId>> FindStale(const NodeId& node,
                                                   const std::vector<AttemptId>& live);
  // OK when the attempt has an open part on this node, held by this incarnation.
  // Errors: Aborted STALE_INCARNATION or STALE_ATTEMPT.
  absl::Status CheckFence(const NodeId& node, const Incarnation& incarnation,
                          const AttemptId& attempt);
  // Stores reports in order with their effects, up to the first gap; repeats are ignored.
  // Errors: Aborted STALE_INCARNATION.
  absl::StatusOr<ReportResult> RecordReports(const NodeId& node, const Incarnation& incarnation,
                                             const std::vector<ReportRecord>& reports);
  // The node's lease has expired. `incarnation` guards against a registration in between.
  absl::Status NodeLost(const NodeId& node, const Incarnation& incarnation);

  // --- checkpoints ------------------------------------------------------------------------------
  // Row COMMITTING, fenced as CheckFence. A checkpoint already committed at this step is answered
  // as it is: the first one stands.
  absl::StatusOr<CheckpointRecord> BeginCheckpoint(const NodeId& node,
                                                   const Incarnation& incarnation,
                                                   const CheckpointRecord& checkpoint);
  // COMMITTING -> COMMITTED with its event, or -> DROPPED with `error`.
  absl::StatusOr<CheckpointRecord> EndCheckpoint(const CheckpointRecord& checkpoint,
                                                 const absl::Status& error);
  // A committed checkpoint whose files no longer verify: dropped with its event, so that it is not
  // resumed from and the step can be committed again.
  absl::Status RejectCheckpoint(const CheckpointRecord& checkpoint, const std::string& why);
  // Moves what the job's retention rule does not keep (retention.h) to DELETING, each with an
  // event, and answers it. Spared for now are those in use: the open attempt resumed from it, a
  // live job restores from it, `is_held`.
  absl::StatusOr<std::vector<CheckpointRecord>> RetireCheckpoints(const JobId& id,
                                                                  const IsHeld& is_held = nullptr);
  // A committed one -> DELETING, with its event and audit row; one that is DELETING or DELETED is
  // answered as it is. Errors: NotFound CHECKPOINT_NOT_FOUND; FailedPrecondition CHECKPOINT_PINNED,
  // CHECKPOINT_FINAL or CHECKPOINT_IN_USE.
  absl::StatusOr<CheckpointRecord> BeginDeletion(const JobId& id, int64_t step,
                                                 const DeletionRequest& request,
                                                 const IsHeld& is_held = nullptr);
  // DELETING -> DELETED: the files are gone. Nothing, when the step has been taken anew since.
  absl::Status EndDeletion(const CheckpointRecord& checkpoint);
  // Whether the row is still as it was when `checkpoint` was read.
  absl::StatusOr<bool> IsStill(const CheckpointRecord& checkpoint);
  // With its event and audit row; nothing when it is so already. Errors: NotFound
  // CHECKPOINT_NOT_FOUND.
  absl::StatusOr<CheckpointRecord> SetPinned(const JobId& id, int64_t step, bool pinned,
                                             const std::string& actor);
  // A committed one. Errors: NotFound CHECKPOINT_NOT_FOUND.
  absl::StatusOr<CheckpointRecord> GetCheckpoint(const JobId& id, int64_t step);
  // Jobs with more committed checkpoints than the last ones that their rule keeps.
  absl::StatusOr<std::vector<JobId>> JobsToRetireFrom();
  // Of all committed checkpoints.
  absl::StatusOr<CheckpointTotals> TotalCheckpoints();
  // Newest step first; steps below `before_step` (0: all).
  absl::StatusOr<std::vector<CheckpointRecord>> ListCheckpoints(const JobId& id,
                                                                int64_t before_step, int limit);
  absl::StatusOr<std::vector<CheckpointRecord>> CheckpointsIn(CheckpointState state);

  // Runs `body` in a transaction of its own; rolled back when it fails. For the store's own parts
  // and their tests (store/transaction.h).
  absl::Status Write(std::function<absl::Status(Transaction&)> body);

 private:
  Store(StoreOptions options, Clock& clock);
  // One change of one job, once per request.
  absl::StatusOr<JobRecord> ChangeJob(
      const JobId& id, const RequestKey& key,
      const std::function<absl::Status(Transaction&, JobRecord)>& change);
  absl::Status Read(const std::function<absl::Status(Database&)>& body);

  const StoreOptions options_;
  Clock& clock_;
  UniqueFd lock_;
  int64_t epoch_ = 0;
  std::string uuid_;
  int64_t held_after_restore_ = 0;
  std::string artifact_root_id_;

  absl::Mutex readers_mu_;
  std::vector<std::unique_ptr<Database>> idle_readers_ ABSL_GUARDED_BY(readers_mu_);

  std::unique_ptr<Writer> writer_;  // last: its thread is joined first
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_STORE_H_
