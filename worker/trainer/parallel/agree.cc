#include "worker/trainer/parallel/agree.h"

#include <ATen/ATen.h>

namespace switchyard {

StopRequest AgreeOnStop(Comm& world, const StopRequest& mine) {
  at::Tensor flags =
      at::tensor({int64_t{mine.stop}, int64_t{mine.stop && !mine.checkpoint}}, at::kLong);
  world.AllReduceMax(flags);
  const bool stop = flags[0].item<int64_t>() != 0;
  return {stop, stop && flags[1].item<int64_t>() == 0};
}

bool AgreeOnAll(Comm& group, bool mine) {
  at::Tensor missing = at::tensor({int64_t{!mine}}, at::kLong);
  group.AllReduceMax(missing);
  return missing.item<int64_t>() == 0;
}

}  // namespace switchyard
