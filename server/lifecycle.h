// How a gang's life goes on, given what is known about it. Pure.
#ifndef SWITCHYARD_SERVER_LIFECYCLE_H_
#define SWITCHYARD_SERVER_LIFECYCLE_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "server/records.h"

namespace switchyard {

struct GangView {
  JobState job_state = JobState::kStarting;
  StopTarget stop_target = StopTarget::kNone;
  std::string stop_message;  // why the job stops
  JobNeeds needs;
  RetryState retry;
  int64_t committed_step = 0;  // the highest step that the job ever committed
  AttemptRecord attempt;
  std::vector<PlacementRecord> placements;
  bool final_checkpoint = false;  // a final checkpoint of the job is committed
  // Of an attempt that failed with CHECKPOINT_INVALID: a step of it was reported; there are
  // committed checkpoints of lower steps than the one that it resumed from.
  bool stepped = false;
  bool older_checkpoint = false;
};

// One hop. Unset: stays as it is.
struct GangHop {
  absl::optional<AttemptState> attempt;
  absl::optional<JobState> job;
  absl::optional<FailureRecord> failure;  // of the attempt; of the job too when it fails
  // Of a job that goes back to the queue after a failure: its budgets, and how many failures in a
  // row were before (failure_policy.h).
  absl::optional<RetryState> retry;
  int32_t waits = 0;
  // The checkpoint that the attempt resumed from is to be rejected.
  bool reject_checkpoint = false;
  std::string message;
  bool none() const { return !attempt.has_value() && !job.has_value(); }
};

// The next hop; the caller stores it and asks again until none is left. An attempt is closed only
// when every node's part is finished or lost: no second attempt may start before.
GangHop NextHop(const GangView& gang);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_LIFECYCLE_H_
