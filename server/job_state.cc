#include "server/job_state.h"

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace switchyard {
namespace {

constexpr JobState kJobStates[] = {
    JobState::kValidating, JobState::kQueued,   JobState::kStarting,
    JobState::kRunning,    JobState::kStopping, JobState::kPaused,
    JobState::kSucceeded,  JobState::kFailed,   JobState::kCancelled};
constexpr const char* kJobStateNames[] = {"VALIDATING", "QUEUED",   "STARTING",
                                          "RUNNING",    "STOPPING", "PAUSED",
                                          "SUCCEEDED",  "FAILED",   "CANCELLED"};
constexpr AttemptState kAttemptStates[] = {AttemptState::kReserved, AttemptState::kDispatched,
                                           AttemptState::kStarting, AttemptState::kRunning,
                                           AttemptState::kStopping, AttemptState::kSucceeded,
                                           AttemptState::kFailed,   AttemptState::kStopped,
                                           AttemptState::kReleased, AttemptState::kLost};
constexpr const char* kAttemptStateNames[] = {"RESERVED", "DISPATCHED", "STARTING", "RUNNING",
                                              "STOPPING", "SUCCEEDED",  "FAILED",   "STOPPED",
                                              "RELEASED", "LOST"};
constexpr const char* kPendingNames[] = {"",
                                         "HELD",
                                         "DEPENDENCY",
                                         "QUOTA",
                                         "PRIORITY",
                                         "RESOURCES",
                                         "CONSTRAINTS_UNSATISFIABLE",
                                         "RETRY_BACKOFF",
                                         "MAINTENANCE",
                                         "ENGINE_QUEUE"};

constexpr const char* kStopReasonNames[] = {"",         "USER",    "PREEMPTED", "DRAIN",
                                            "DEADLINE", "STALLED", "POLICY"};
constexpr ConditionType kConditionTypes[] = {
    ConditionType::kUnreachable, ConditionType::kStalled, ConditionType::kStraggling,
    ConditionType::kCheckpointStale, ConditionType::kDraining};
constexpr const char* kConditionNames[] = {"UNREACHABLE", "STALLED", "STRAGGLING",
                                           "CHECKPOINT_STALE", "DRAINING"};
constexpr const char* kSchedulingNames[] = {"ACTIVE", "CORDONED", "DRAINING"};
constexpr const char* kDomainNames[] = {"user", "infrastructure", "hardware", "order", "final"};

struct Reason {
  FailureReason reason;
  FailureDomain domain;
  bool usually_consequence = false;
};
constexpr FailureDomain kUserFault = FailureDomain::kUser;
constexpr FailureDomain kInfra = FailureDomain::kInfrastructure;
constexpr Reason kReasons[] = {
    {FailureReason::kNone, FailureDomain::kFinal},
    {FailureReason::kConfigInvalid, kUserFault},
    {FailureReason::kDataInvalid, kUserFault},
    {FailureReason::kOomGpu, kUserFault},
    {FailureReason::kOomHost, kInfra},
    {FailureReason::kTrainerExit, kInfra},
    {FailureReason::kTrainerSignal, kInfra},
    {FailureReason::kNanLoss, kUserFault},
    {FailureReason::kLossSpike, kUserFault},
    {FailureReason::kNcclError, kInfra, true},
    {FailureReason::kHang, kInfra, true},
    {FailureReason::kGpuXid, FailureDomain::kHardware},
    {FailureReason::kNodeLost, kInfra},
    {FailureReason::kNodeReboot, kInfra},
    {FailureReason::kPreempted, FailureDomain::kOrder},
    {FailureReason::kDrained, FailureDomain::kOrder},
    {FailureReason::kEngineCancelled, FailureDomain::kFinal},
    {FailureReason::kEngineRejected, kInfra},
    {FailureReason::kDiskFull, kInfra},
    {FailureReason::kStorageIo, kInfra},
    {FailureReason::kCheckpointInvalid, FailureDomain::kFinal},
    {FailureReason::kDeadline, FailureDomain::kFinal},
    {FailureReason::kExitUnknown, kInfra, true},
    {FailureReason::kInternal, kInfra},
};
constexpr JobTransition kJobTransitions[] = {
    {absl::nullopt, JobState::kQueued, "CreateJob: the job is stored"},
    {absl::nullopt, JobState::kValidating, "CreateJob of a job whose data is checked first"},
    {JobState::kValidating, JobState::kQueued, "the data is good"},
    {JobState::kValidating, JobState::kFailed, "DATA_INVALID or CONFIG_INVALID"},
    {JobState::kValidating, JobState::kCancelled, "CancelJob"},
    {JobState::kQueued, JobState::kStarting, "the whole gang fits; the attempt before is closed"},
    {JobState::kQueued, JobState::kCancelled, "CancelJob"},
    {JobState::kQueued, JobState::kPaused, "PauseJob"},
    {JobState::kQueued, JobState::kFailed, "deadline"},
    {JobState::kStarting, JobState::kRunning, "every rank of every node runs"},
    {JobState::kStarting, JobState::kQueued,
     "attempt closed, another may help and the budget has one"},
    {JobState::kStarting, JobState::kFailed,
     "attempt closed, cause final, budget spent or no progress"},
    {JobState::kStarting, JobState::kStopping, "CancelJob, PauseJob, preemption, drain, deadline"},
    {JobState::kRunning, JobState::kSucceeded, "every rank ended well, final checkpoint committed"},
    {JobState::kRunning, JobState::kQueued,
     "attempt closed, another may help and the budget has one"},
    {JobState::kRunning, JobState::kFailed,
     "attempt closed, cause final, budget spent or no progress"},
    {JobState::kRunning, JobState::kStopping, "CancelJob, PauseJob, preemption, drain, deadline"},
    {JobState::kStopping, JobState::kSucceeded,
     "every rank ended well before it heard of a pause, preemption or drain"},
    {JobState::kStopping, JobState::kCancelled, "attempt closed, target CANCELLED"},
    {JobState::kStopping, JobState::kPaused, "attempt closed, target PAUSED"},
    {JobState::kStopping, JobState::kQueued, "attempt closed, target QUEUED"},
    {JobState::kStopping, JobState::kFailed, "attempt closed, target FAILED"},
    {JobState::kPaused, JobState::kQueued, "ResumeJob"},
    {JobState::kPaused, JobState::kCancelled, "CancelJob"},
};

struct AttemptTransition {
  AttemptState from;
  AttemptState to;
  const char* cause;
};
constexpr AttemptTransition kAttemptTransitions[] = {
    {AttemptState::kReserved, AttemptState::kDispatched, "Assign was sent to every node"},
    {AttemptState::kReserved, AttemptState::kStopping, "stop, or a node failed"},
    {AttemptState::kReserved, AttemptState::kReleased, "closed before anything started"},
    {AttemptState::kReserved, AttemptState::kFailed, "a node could not prepare"},
    {AttemptState::kDispatched, AttemptState::kStarting, "every node is prepared; Start is sent"},
    {AttemptState::kDispatched, AttemptState::kStopping, "stop, or a node failed"},
    {AttemptState::kDispatched, AttemptState::kReleased, "closed before anything started"},
    {AttemptState::kDispatched, AttemptState::kFailed, "a node could not prepare"},
    {AttemptState::kStarting, AttemptState::kRunning, "every rank runs"},
    {AttemptState::kStarting, AttemptState::kStopping, "stop, or a rank failed"},
    {AttemptState::kStarting, AttemptState::kFailed, "all nodes ended, one failed"},
    {AttemptState::kStarting, AttemptState::kLost, "the nodes are lost"},
    {AttemptState::kRunning, AttemptState::kSucceeded, "all nodes ended well"},
    {AttemptState::kRunning, AttemptState::kStopping, "stop, or a rank failed"},
    {AttemptState::kRunning, AttemptState::kFailed, "all nodes ended, one failed"},
    {AttemptState::kRunning, AttemptState::kLost, "the nodes are lost"},
    {AttemptState::kStopping, AttemptState::kSucceeded, "all nodes ended well all the same"},
    {AttemptState::kStopping, AttemptState::kStopped, "all nodes ended after an order"},
    {AttemptState::kStopping, AttemptState::kFailed, "all nodes ended after a failure"},
    {AttemptState::kStopping, AttemptState::kLost, "the rest ended after a node was lost"},
    {AttemptState::kStopping, AttemptState::kReleased, "closed before anything started"},
};

}  // namespace

absl::string_view Name(JobState state) { return kJobStateNames[static_cast<int>(state) - 1]; }
absl::string_view Name(AttemptState state) {
  return kAttemptStateNames[static_cast<int>(state) - 1];
}
absl::string_view Name(PendingReason reason) { return kPendingNames[static_cast<int>(reason)]; }
absl::string_view Name(StopReason reason) { return kStopReasonNames[static_cast<int>(reason)]; }
absl::string_view Name(ConditionType type) { return kConditionNames[static_cast<int>(type) - 1]; }
absl::string_view Name(NodeScheduling scheduling) {
  return kSchedulingNames[static_cast<int>(scheduling) - 1];
}
absl::string_view Name(FailureDomain domain) { return kDomainNames[static_cast<int>(domain) - 1]; }
FailureDomain DomainOf(FailureReason reason) { return kReasons[static_cast<int>(reason)].domain; }
bool IsUsuallyConsequence(FailureReason reason) {
  return kReasons[static_cast<int>(reason)].usually_consequence;
}

absl::Span<const JobState> AllJobStates() { return kJobStates; }
absl::Span<const AttemptState> AllAttemptStates() { return kAttemptStates; }
absl::Span<const ConditionType> AllConditionTypes() { return kConditionTypes; }
absl::Span<const JobTransition> JobTransitions() { return kJobTransitions; }

bool IsLegal(JobState from, JobState to) {
  for (const JobTransition& t : kJobTransitions) {
    if (t.from == from && t.to == to) return true;
  }
  return false;
}

bool IsLegal(AttemptState from, AttemptState to) {
  for (const AttemptTransition& t : kAttemptTransitions) {
    if (t.from == from && t.to == to) return true;
  }
  return false;
}

JobState TargetState(StopTarget target) {
  switch (target) {
    case StopTarget::kCancelled:
      return JobState::kCancelled;
    case StopTarget::kPaused:
      return JobState::kPaused;
    case StopTarget::kQueued:
      return JobState::kQueued;
    case StopTarget::kFailed:
      return JobState::kFailed;
    case StopTarget::kNone:
      break;
  }
  SY_CHECK(false) << "a stopping job has a target";
  return JobState::kFailed;
}

std::string StatesMarkdown() {
  std::string out =
      "# States\n\n"
      "Made from the tables in `server/job_state.cc` by `switchyardd --print-states`; a test keeps "
      "it "
      "current.\n\n## Job\n\n```mermaid\nstateDiagram-v2\n";
  for (const JobTransition& t : kJobTransitions) {
    absl::StrAppend(&out, "  ", t.from ? Name(*t.from) : "[*]", " --> ", Name(t.to), "\n");
  }
  for (JobState state : kJobStates) {
    if (IsFinal(state)) absl::StrAppend(&out, "  ", Name(state), " --> [*]\n");
  }
  absl::StrAppend(&out, "```\n\n| from | to | cause |\n|---|---|---|\n");
  for (const JobTransition& t : kJobTransitions) {
    absl::StrAppend(&out, "| ", t.from ? Name(*t.from) : "-", " | ", Name(t.to), " | ", t.cause,
                    " |\n");
  }
  absl::StrAppend(&out, "\nNo transition leaves SUCCEEDED, FAILED or CANCELLED.\n\n## Attempt\n\n",
                  "```mermaid\nstateDiagram-v2\n  [*] --> RESERVED\n");
  for (const AttemptTransition& t : kAttemptTransitions) {
    absl::StrAppend(&out, "  ", Name(t.from), " --> ", Name(t.to), "\n");
  }
  absl::StrAppend(&out, "```\n\n| from | to | cause |\n|---|---|---|\n");
  for (const AttemptTransition& t : kAttemptTransitions) {
    absl::StrAppend(&out, "| ", Name(t.from), " | ", Name(t.to), " | ", t.cause, " |\n");
  }
  absl::StrAppend(
      &out,
      "\n## Failure reasons\n\n"
      "What follows a failure depends on its domain. `user`: another attempt uses "
      "`retry.max_user_retries`; `infrastructure` and `hardware`: `retry.max_retries`, after "
      "hardware on other nodes; `order`, and a node that is lost before the start: nothing five "
      "times "
      "without progress, then as `infrastructure`; `final`: none. A newer committed "
      "checkpoint "
      "gives all budgets back. Without one, a job fails after `retry.no_progress_limit` attempts "
      "in "
      "a row, or as soon as the same reason with the same last error line comes twice.\n\n"
      "| reason | domain | usually a consequence of another rank's failure |\n|---|---|---|\n");
  for (const Reason& r : kReasons) {
    if (r.reason == FailureReason::kNone) continue;
    absl::StrAppend(&out, "| ", Name(r.reason), " | ", Name(r.domain), " | ",
                    r.usually_consequence ? "yes" : "", " |\n");
  }
  return out;
}

}  // namespace switchyard
