#include <ATen/core/Tensor.h>

#include "kernels/rank_sum/rank_sum.h"
#include "worker/trainer/ops/kernel_call.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops::on_cuda {

bool ServesRankSum(const at::Tensor& parts_RN) {
  return parts_RN.is_cuda() &&
         (parts_RN.scalar_type() == at::kFloat || parts_RN.scalar_type() == at::kBFloat16);
}

void RankSum(const at::Tensor& parts_RN, at::Tensor out_N) {
  const int ranks = static_cast<int>(parts_RN.size(0));
  const int64_t size = out_N.numel();
  const cudaError_t error =
      parts_RN.scalar_type() == at::kFloat
          ? kernels::RankSum(
                kernels::RankSumParams<float>{FloatOf(parts_RN), FloatOf(out_N), size, ranks},
                CurrentStream())
          : kernels::RankSum(
                kernels::RankSumParams<kernels::Bf16>{Bf16Of(parts_RN), Bf16Of(out_N), size, ranks},
                CurrentStream());
  CheckKernel(error, "sum over ranks");
}

}  // namespace switchyard::ops::on_cuda
