// The states of jobs and attempts, the one table of legal transitions, and the document made of it.
//
// A job is what a user asked for; an attempt is one try at it. Values equal those of the protos
// (api/convert.cc checks that at compile time), so that the wire and the database agree.
#ifndef SWITCHYARD_SERVER_JOB_STATE_H_
#define SWITCHYARD_SERVER_JOB_STATE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "absl/types/span.h"

namespace switchyard {

enum class JobState {
  kValidating = 1,
  kQueued = 2,
  kStarting = 3,
  kRunning = 4,
  kStopping = 5,
  kPaused = 6,
  kSucceeded = 7,
  kFailed = 8,
  kCancelled = 9,
};

enum class AttemptState {
  kReserved = 1,    // devices are held, nothing was sent
  kDispatched = 2,  // every node was told to prepare
  kStarting = 3,    // every node is prepared and told to start
  kRunning = 4,
  kStopping = 5,
  kSucceeded = 6,
  kFailed = 7,
  kStopped = 8,   // ended because of an order
  kReleased = 9,  // never started; uses no retry
  kLost = 10,     // its node's lease expired, or the node is proven gone
};

enum class PendingReason {
  kNone = 0,
  kHeld = 1,
  kDependency = 2,
  kQuota = 3,
  kPriority = 4,
  kResources = 5,
  kConstraintsUnsatisfiable = 6,
  kRetryBackoff = 7,
  kMaintenance = 8,
  kEngineQueue = 9,
};

enum class StopTarget { kNone = 0, kCancelled = 1, kPaused = 2, kQueued = 3, kFailed = 4 };

enum class FailureReason {
  kNone = 0,
  kConfigInvalid = 1,
  kDataInvalid = 2,
  kOomGpu = 3,
  kOomHost = 4,
  kTrainerExit = 5,
  kTrainerSignal = 6,
  kNanLoss = 7,
  kLossSpike = 8,
  kNcclError = 9,
  kHang = 10,
  kGpuXid = 11,
  kNodeLost = 12,
  kNodeReboot = 13,
  kPreempted = 14,
  kDrained = 15,
  kEngineCancelled = 16,
  kEngineRejected = 17,
  kDiskFull = 18,
  kStorageIo = 19,
  kCheckpointInvalid = 20,
  kDeadline = 21,
  kExitUnknown = 22,
  kInternal = 23,
};

// Where one node's part of an attempt stands. Grows only, except that a prepared part whose agent
// restarted before the start is prepared again.
enum class PlacementPhase {
  kReserved = 1,
  kDispatched = 2,
  kPrepared = 3,
  kRunning = 4,
  kFinished = 5,
  kLost = 6,
};

absl::string_view Name(JobState state);
absl::string_view Name(AttemptState state);
absl::string_view Name(PendingReason reason);
absl::string_view Name(FailureReason reason);
absl::optional<FailureReason> ParseFailureReason(absl::string_view name);

inline bool IsFinal(JobState state) { return state >= JobState::kSucceeded; }
inline bool IsFinal(AttemptState state) { return state >= AttemptState::kSucceeded; }

// Whether another attempt may help: infrastructure causes yes; faults of the user's data, settings
// or training dynamics no.
bool IsRetryable(FailureReason reason);

absl::Span<const JobState> AllJobStates();
absl::Span<const AttemptState> AllAttemptStates();
absl::Span<const FailureReason> AllFailureReasons();

struct JobTransition {
  absl::optional<JobState> from;  // none: creation
  JobState to;
  const char* cause;
};
absl::Span<const JobTransition> JobTransitions();
bool IsLegal(JobState from, JobState to);
bool IsLegal(AttemptState from, AttemptState to);

// The state a stopping job goes to once its attempt is closed.
JobState TargetState(StopTarget target);

// docs/states.md: diagrams and tables made of the tables above.
std::string StatesMarkdown();

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_JOB_STATE_H_
