// RMSNorm over the last dim, with Llama's two roundings:
//     y = w * cast(x * rsqrt(mean(x^2) + eps))
// statistics and the normalised value in the accumulation dtype, cast to the dtype of x, then the
// product in that dtype. Nothing is saved: the backward computes the statistics again.
//
// R rows of any leading shape, D normalised.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_RMS_NORM_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_RMS_NORM_H_

#include <ATen/core/Tensor.h>

namespace switchyard::ops {

// [..., D], [D] -> [..., D].
at::Tensor RmsNormForward(const at::Tensor& x_RD, const at::Tensor& weight_D, double eps);
// Returns dx; adds to dweight_D (accumulation dtype). Gradients are rounded once, at the end.
at::Tensor RmsNormBackward(const at::Tensor& dy_RD, const at::Tensor& x_RD,
                           const at::Tensor& weight_D, double eps, at::Tensor dweight_D);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_RMS_NORM_H_
