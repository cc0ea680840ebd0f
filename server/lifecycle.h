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
  int32_t max_retries = 0;
  int32_t retries_used = 0;
  AttemptRecord attempt;
  std::vector<PlacementRecord> placements;
  bool final_checkpoint = false;  // a final checkpoint of the job is committed
};

// One hop. Unset: stays as it is.
struct GangHop {
  absl::optional<AttemptState> attempt;
  absl::optional<JobState> job;
  absl::optional<FailureRecord> failure;  // of the attempt; of the job too when it fails
  bool uses_retry = false;
  std::string message;
  bool none() const { return !attempt.has_value() && !job.has_value(); }
};

// The next hop; the caller stores it and asks again until none is left. An attempt is closed only
// when every node's part is finished or lost: no second attempt may start before.
GangHop NextHop(const GangView& gang);

// The wait before the attempt that follows `retries_used` retries: 10 s, 20 s, ... 10 min for an
// `initial` of 10 s. Without jitter: one coordinator places one gang at a time.
absl::Duration RetryBackoff(absl::Duration initial, int32_t retries_used);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_LIFECYCLE_H_
