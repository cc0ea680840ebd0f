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
#include "base/failure_reason.h"

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

// Why a live job is being stopped.
enum class StopReason {
  kNone = 0,
  kUser = 1,
  kPreempted = 2,
  kDrain = 3,
  kDeadline = 4,
  kStalled = 5,
  kPolicy = 6,
};

// What is suspected of a live job. Changes no state.
enum class ConditionType {
  kUnreachable = 1,
  kStalled = 2,
  kStraggling = 3,
  kCheckpointStale = 4,
  kDraining = 5,
};

// What an operator wants of a node.
enum class NodeScheduling {
  kActive = 1,
  kCordoned = 2,  // nothing new is placed there
  kDraining = 3,  // and what runs there is asked to leave
};

// Whose fault a failure most likely is, which decides the budget that another attempt uses.
enum class FailureDomain {
  kUser = 1,            // the job's data, settings or training dynamics
  kInfrastructure = 2,  // processes, network, storage, nodes
  kHardware = 3,        // as infrastructure; the next attempts avoid the node
  kOrder = 4,           // stopped by somebody's order: another attempt costs nothing
  kFinal = 5,           // another attempt cannot help
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
absl::string_view Name(StopReason reason);
absl::string_view Name(ConditionType type);
absl::string_view Name(NodeScheduling scheduling);
absl::string_view Name(FailureDomain domain);

inline bool IsFinal(JobState state) { return state >= JobState::kSucceeded; }
inline bool IsFinal(AttemptState state) { return state >= AttemptState::kSucceeded; }

FailureDomain DomainOf(FailureReason reason);
// Whether the reason is what a rank says when another rank has failed: a later report of another
// reason is then the cause.
bool IsUsuallyConsequence(FailureReason reason);

absl::Span<const JobState> AllJobStates();
absl::Span<const AttemptState> AllAttemptStates();
absl::Span<const ConditionType> AllConditionTypes();

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
