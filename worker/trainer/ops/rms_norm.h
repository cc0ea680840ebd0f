// RMSNorm over the last dim, with Llama's two roundings:
//     y = w * cast(x * rsqrt(mean(x^2) + eps))
// statistics and the normalised value in the accumulation dtype, cast to the dtype of x, then the
// product in that dtype. Where a residual stream is added before, both are one pass over memory.
//
// R rows of any leading shape, D normalised. CUDA, bf16: rows [R, D], D % 8 == 0, D <= 8192; else
// composed of ATen's operations.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_RMS_NORM_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_RMS_NORM_H_

#include <ATen/core/Tensor.h>

namespace switchyard::ops {

struct RmsNormOutput {
  at::Tensor y_RD;
  // 1 / rms of each row, for the backward; undefined where the backward computes it again.
  at::Tensor inverse_rms_R;
};
// [..., D], [D] -> [..., D].
RmsNormOutput RmsNormForward(const at::Tensor& x_RD, const at::Tensor& weight_D, double eps);
// The norm of x + residual; x becomes that sum.
RmsNormOutput AddRmsNormForward(at::Tensor x_RD, const at::Tensor& residual_RD,
                                const at::Tensor& weight_D, double eps);

// Returns dx + dresidual (undefined: nothing), the gradient that passes the norm by. Gradients are
// rounded once, at the end; dweight_D (any float dtype) is added to or overwritten.
at::Tensor RmsNormBackward(const at::Tensor& dy_RD, const at::Tensor& x_RD,
                           const at::Tensor& inverse_rms_R, const at::Tensor& weight_D, double eps,
                           const at::Tensor& dresidual_RD, at::Tensor dweight_D, bool accumulate);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_RMS_NORM_H_
