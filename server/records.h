// What the coordinator keeps: plain values, as the database holds them.
#ifndef SWITCHYARD_SERVER_RECORDS_H_
#define SWITCHYARD_SERVER_RECORDS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "absl/types/variant.h"
#include "base/ids.h"
#include "server/job_state.h"

namespace switchyard {

// A failure that came after the first one, most likely as its consequence.
struct CascadeRecord {
  FailureReason reason = FailureReason::kInternal;
  int32_t rank = -1;
  std::string node;
  std::string message;
  friend bool operator==(const CascadeRecord&, const CascadeRecord&) = default;
};

struct FailureRecord {
  FailureReason reason = FailureReason::kInternal;
  std::string message;
  int32_t rank = -1;  // the first rank that failed; -1: no rank
  std::string node;
  int32_t exit_code = 0;
  int32_t signal = 0;
  std::vector<std::string> last_lines;
  int64_t step = 0;
  std::vector<CascadeRecord> cascade;  // at most 16
  friend bool operator==(const FailureRecord&, const FailureRecord&) = default;
};

// Which committed checkpoints of a job are kept (retention.h).
struct RetentionRule {
  int32_t keep_last = 0;   // the last ones committed; 0: all are kept, whatever else is said
  int64_t keep_every = 0;  // also those of every so many steps; 0: none for that
  int32_t keep_best = 0;   // also so many of the lowest validation loss
  friend bool operator==(const RetentionRule&, const RetentionRule&) = default;
};

// What scheduling and retention read from a spec; copied out of it when the job is created.
struct JobNeeds {
  int32_t num_ranks = 1;
  bool cpu_only = false;
  int32_t max_retries = 0;       // for infrastructure and hardware
  int32_t max_user_retries = 0;  // for the user's own faults
  int32_t no_progress_limit = 3;
  RetentionRule retention;
  bool resumable = false;  // checkpoints hold the optimizer's state
  int32_t priority = 0;
  absl::Duration max_run_time = absl::ZeroDuration();  // zero: no limit
  int64_t checkpoint_every = 0;                        // steps; 0: only at the end
  std::string restore_from;  // folder of another job's checkpoint; empty: none
};

// How much of its budgets a job has used since the newest checkpoint that counted as progress.
struct RetryState {
  int32_t retries_used = 0;
  int32_t user_retries_used = 0;
  int32_t no_progress = 0;           // attempts in a row without a newer committed checkpoint
  int64_t progress_step = 0;         // the highest step committed when an attempt was judged last
  int32_t free_failures = 0;         // attempts without progress that cost nothing (failure_policy)
  bool fell_back = false;            // the last failure cost the checkpoint it resumed from
  std::string fingerprint;           // of the last failure
  std::vector<std::string> avoided;  // nodes that hardware failed on
  friend bool operator==(const RetryState&, const RetryState&) = default;
};

struct JobRecord {
  int64_t seq = 0;  // order of creation; the queue's order
  JobId id;
  std::string uid;
  std::string project;
  std::string display_name;
  std::map<std::string, std::string> labels;
  std::string spec;  // JobSpec, serialized; opaque here
  std::string recipe;
  JobNeeds needs;
  int64_t version = 1;  // grows with every change; the etag
  JobState state = JobState::kQueued;
  PendingReason pending = PendingReason::kNone;
  std::string message;
  StopTarget stop_target = StopTarget::kNone;
  StopReason stop_reason = StopReason::kNone;
  absl::Duration stop_grace = absl::Seconds(30);
  int32_t current_attempt = 0;
  RetryState retry;
  absl::Duration run_time = absl::ZeroDuration();  // devices held, all attempts; see AddRunTime
  absl::Duration backoff = absl::ZeroDuration();   // wait this long before the next attempt
  absl::optional<FailureRecord> failure;
  absl::optional<double> validation_loss;  // the newest
  int64_t first_event = 1;                 // of those that are kept; more than 1: it was pruned
  absl::Time create_time;
  absl::Time update_time;
  absl::optional<absl::Time> start_time;
  absl::optional<absl::Time> end_time;
};

struct AttemptRecord {
  AttemptId id;
  AttemptState state = AttemptState::kReserved;
  bool started = false;  // Start was ordered at least once
  std::string resume_from;
  StopReason stop_reason = StopReason::kNone;  // why it was ordered to stop
  absl::optional<FailureRecord> failure;       // the first, with what followed it
  absl::Time create_time;
  absl::optional<absl::Time> end_time;
  std::vector<std::string> nodes;  // by node rank
};

// One node's part of an attempt.
struct PlacementRecord {
  AttemptId attempt;
  NodeId node;
  int32_t node_rank = 0;
  int32_t first_rank = 0;
  std::vector<int32_t> devices;
  PlacementPhase phase = PlacementPhase::kReserved;
  int32_t port = 0;  // free on that node, once prepared
  bool succeeded = false;
  bool stopped = false;
};

struct EventRecord {
  int64_t seq = 0;      // over all jobs
  int64_t job_seq = 0;  // per job, from 1, without gaps
  absl::Time time;
  std::string kind;
  std::string message;
  JobState state = JobState::kQueued;
  int32_t attempt = 0;
};

struct StepRecord {
  int64_t id = 0;           // order of arrival
  int64_t after_event = 0;  // seq of the newest event when it arrived
  int32_t attempt = 0;
  int64_t step = 0;
  std::string raw;  // StepMetrics, serialized; opaque here
};

enum class CheckpointState {
  kCommitting = 1,  // its files are being moved to their place
  kCommitted = 2,
  kDropped = 3,   // not published, or rejected since
  kDeleted = 4,   // its files are gone
  kDeleting = 5,  // nobody may use it any more; its files are being removed
};

struct CheckpointRecord {
  JobId job;
  int64_t step = 0;
  int32_t attempt = 0;
  CheckpointState state = CheckpointState::kCommitting;
  std::string path;
  std::string staging_path;
  uint32_t manifest_crc32c = 0;
  int64_t size_bytes = 0;
  double loss = 0;
  double validation_loss = 0;
  bool final = false;
  absl::Time create_time;
  int64_t commit_seq = 0;  // order of commits within the job, from 1; 0: never committed
  bool pinned = false;     // a user wants it kept
};

struct ConditionRecord {
  ConditionType type = ConditionType::kUnreachable;
  std::string message;
  absl::Time since;
};
// Sets a condition of a live job, or clears it.
struct ConditionChange {
  JobId job;
  ConditionType type = ConditionType::kUnreachable;
  absl::optional<std::string> message;  // none: cleared
  friend bool operator==(const ConditionChange&, const ConditionChange&) = default;
};

struct AuditRecord {
  int64_t seq = 0;
  absl::Time time;
  std::string actor;
  std::string action;
  std::string target;
  std::string message;
};

struct DeviceRecord {
  int32_t index = 0;
  std::string kind;
  int64_t memory_bytes = 0;
  std::string uuid;
  friend bool operator==(const DeviceRecord&, const DeviceRecord&) = default;
};

// What the coordinator itself holds against a node that comes and goes (scheduler/quarantine.h).
struct QuarantineRecord {
  int32_t level = 0;    // how often in a row; kept after the release
  std::string message;  // why nothing is placed there; empty: it is not held
  friend bool operator==(const QuarantineRecord&, const QuarantineRecord&) = default;
};

struct NodeRecord {
  NodeId id;
  Incarnation incarnation;
  std::string boot_id;
  std::string address;
  std::string version;
  std::vector<DeviceRecord> devices;
  bool lost = false;  // the lease expired; offered again after the next registration
  NodeScheduling scheduling = NodeScheduling::kActive;  // kept over registrations
  std::string scheduling_message;
  QuarantineRecord quarantine;  // kept over registrations
  int64_t acknowledged_report = 0;
  std::string state_folder;  // of the agent on its machine
  std::string agent_id;      // the folder and its machine over all boots; empty: not known
  int64_t boots = 0;         // of the machine, as counted in the folder
  absl::Duration lease_ttl;  // the longest that the agent may believe in
};

// What an agent says happened.
struct PreparedReport {
  int32_t port = 0;
  std::string data_report;
};
struct RunningReport {};
struct StepReport {
  int64_t step = 0;
  std::string raw;
  absl::optional<double> validation_loss;
  double step_seconds = 0;
  int32_t slow_rank = -1;  // the rank that the others waited for; -1: not measured
  double slow_ratio = 0;   // its busy time over the median
};
struct LogReport {};  // the bytes are in their file before the report is recorded
struct FinishedReport {
  bool succeeded = false;
  bool stopped = false;
  absl::optional<FailureRecord> failure;
};
struct EventReport {
  std::string kind;
  std::string message;
};
struct RankFailedReport {
  FailureRecord failure;
};
struct ReportRecord {
  int64_t number = 0;
  AttemptId attempt;
  absl::variant<LogReport, PreparedReport, RunningReport, StepReport, FinishedReport, EventReport,
                RankFailedReport>
      what;
};

// What a node should do now.
struct AssignOrder {
  std::string job_uid;
  std::string spec;
  int32_t node_rank = 0;
  int32_t num_nodes = 0;
  int32_t first_rank = 0;
  std::vector<int32_t> devices;
  int32_t world_size = 0;
  std::string resume_from;
};
struct StartOrder {
  std::string master_address;
  int32_t master_port = 0;
};
struct StopOrder {
  absl::Duration grace;
  std::string reason;
  bool checkpoint = false;
};
struct OrderRecord {
  AttemptId attempt;
  absl::variant<AssignOrder, StartOrder, StopOrder> what;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_RECORDS_H_
