#include "worker/trainer/ops/rank_sum.h"

#include <ATen/ATen.h>

#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops {

void RankSum(const at::Tensor& parts_RN, at::Tensor out_N) {
#if defined(SY_CUDA)
  if (on_cuda::ServesRankSum(parts_RN)) return on_cuda::RankSum(parts_RN, out_N);
#endif
  const int64_t ranks = parts_RN.size(0);
  const at::ScalarType type = parts_RN.scalar_type();
  if (type == at::kBFloat16 || type == at::kHalf) {
    at::Tensor sum_N = parts_RN[0].to(at::kFloat);
    for (int64_t r = 1; r < ranks; ++r) sum_N.add_(parts_RN[r]);
    out_N.copy_(sum_N);
    return;
  }
  out_N.copy_(parts_RN[0]);
  for (int64_t r = 1; r < ranks; ++r) out_N.add_(parts_RN[r]);
}

}  // namespace switchyard::ops
