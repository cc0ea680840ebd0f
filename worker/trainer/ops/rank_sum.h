// The sum of what several ranks sent, in the order of the ranks.
//
// R ranks, N elements, N = 0 is valid. CUDA, float32 and bf16: one pass (kernels/rank_sum); else
// composed of ATen's operations. Both give the same bits.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_RANK_SUM_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_RANK_SUM_H_

#include <ATen/core/Tensor.h>

namespace switchyard::ops {

// out_N = parts_RN[0] + parts_RN[1] + ..., any dtype that adds; 16-bit floats in fp32, rounded
// once. Both contiguous, apart from each other.
void RankSum(const at::Tensor& parts_RN, at::Tensor out_N);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_RANK_SUM_H_
