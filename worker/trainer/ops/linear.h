// y = x W^T + b with W stored [out, in], as in the published checkpoints.
//
// R rows, I in, O out. R = 0 is valid. All tensors are on one device; x and dy may be any 2-D view.
//
// Weight gradients go into buffers of the accumulation dtype (ops/dtype.h) or of bf16. With
// `accumulate` they are added to what is there, else they overwrite it, whatever it holds. The
// product is summed in the accumulation dtype and rounded once, to the buffer's dtype, after the
// addition.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_LINEAR_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_LINEAR_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace switchyard::ops {

// [R, I], [O, I], [O] or undefined -> [R, O].
at::Tensor LinearForward(const at::Tensor& x_RI, const at::Tensor& weight_OI,
                         const at::Tensor& bias_O);
// [R, O], [O, I] -> [R, I].
at::Tensor LinearBackwardInput(const at::Tensor& dy_RO, const at::Tensor& weight_OI);
// dweight (+)= dy^T x.
void LinearBackwardWeight(const at::Tensor& dy_RO, const at::Tensor& x_RI, at::Tensor dweight_OI,
                          bool accumulate);
// dbias (+)= sum of dy over rows. Does nothing when `dbias` is undefined.
void LinearBackwardBias(const at::Tensor& dy_RO, at::Tensor dbias_O, bool accumulate);

// The same over groups: the first rows_per_group[0] rows meet weight_GOI[0], and so on. Groups
// without rows are skipped; rows_per_group sums to R (checked). The gradient of a group without
// rows is zero. For the CPU: a GPU has kernels that need no counts on the host.
at::Tensor GroupedLinearForward(const at::Tensor& x_RI, const at::Tensor& weight_GOI,
                                const std::vector<int64_t>& rows_per_group);
at::Tensor GroupedLinearBackwardInput(const at::Tensor& dy_RO, const at::Tensor& weight_GOI,
                                      const std::vector<int64_t>& rows_per_group);
void GroupedLinearBackwardWeight(const at::Tensor& dy_RO, const at::Tensor& x_RI,
                                 const std::vector<int64_t>& rows_per_group, at::Tensor dweight_GOI,
                                 bool accumulate);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_LINEAR_H_
