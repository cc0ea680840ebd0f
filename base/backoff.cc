#include "base/backoff.h"

#include <algorithm>

namespace switchyard {

absl::Duration BackoffDelay(const BackoffPolicy& policy, int attempt, double uniform) {
  absl::Duration delay = policy.initial;
  for (int i = 0; i < attempt && delay < policy.max; ++i) delay = delay * policy.multiplier;
  return std::min(delay, policy.max) * (0.5 + 0.5 * uniform);
}

}  // namespace switchyard
