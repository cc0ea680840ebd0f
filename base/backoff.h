// Jittered exponential delays.
#ifndef SWITCHYARD_BASE_BACKOFF_H_
#define SWITCHYARD_BASE_BACKOFF_H_

#include "absl/time/time.h"

namespace switchyard {

struct BackoffPolicy {
  absl::Duration initial = absl::Milliseconds(100);
  absl::Duration max = absl::Seconds(30);
  double multiplier = 2.0;
};

// The delay before try `attempt` (0: the first retry), between half and the whole of
// min(max, initial * multiplier^attempt). `uniform` in [0, 1) is the caller's random draw. Pure.
absl::Duration BackoffDelay(const BackoffPolicy& policy, int attempt, double uniform);

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_BACKOFF_H_
