#include <ATen/ATen.h>

#include "kernels/rmsnorm/rmsnorm.h"
#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/kernel_call.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops::on_cuda {
namespace {

RmsNormOutput Run(const at::Tensor& x_RD, const at::Tensor& residual_RD, const at::Tensor& weight_D,
                  double eps) {
  RmsNormOutput out = {at::empty(x_RD.sizes(), x_RD.options()),
                       at::empty({x_RD.size(0)}, x_RD.options().dtype(at::kFloat))};
  kernels::RmsNormParams p = {};
  p.x = Bf16Of(x_RD);
  p.residual = Bf16Of(residual_RD);
  p.weight = Bf16Of(weight_D);
  p.sum = residual_RD.defined() ? Bf16Of(x_RD) : nullptr;
  p.out = Bf16Of(out.y_RD);
  p.rstd = FloatOf(out.inverse_rms_R);
  p.tokens = x_RD.size(0);
  p.hidden = static_cast<int>(x_RD.size(1));
  p.eps = static_cast<float>(eps);
  p.kind = kernels::NormKind::kLlama;
  CheckKernel(kernels::RmsNorm(p, CurrentStream()), "rms_norm");
  return out;
}

}  // namespace

bool ServesRmsNorm(const at::Tensor& x_RD) {
  return HasKernels(x_RD) && x_RD.dim() == 2 && x_RD.is_contiguous() && x_RD.size(1) % 8 == 0 &&
         x_RD.size(1) <= 8192;
}

RmsNormOutput RmsNormForward(const at::Tensor& x_RD, const at::Tensor& weight_D, double eps) {
  return Run(x_RD, {}, weight_D, eps);
}

RmsNormOutput AddRmsNormForward(at::Tensor x_RD, const at::Tensor& residual_RD,
                                const at::Tensor& weight_D, double eps) {
  TORCH_CHECK(residual_RD.sizes() == x_RD.sizes() && residual_RD.is_contiguous(),
              "rms_norm: residual ", residual_RD.sizes(), " of x ", x_RD.sizes());
  return Run(x_RD, residual_RD, weight_D, eps);
}

at::Tensor RmsNormBackward(const at::Tensor& dy_RD, const at::Tensor& x_RD,
                           const at::Tensor& inverse_rms_R, const at::Tensor& weight_D, double eps,
                           const at::Tensor& dresidual_RD, at::Tensor dweight_D, bool accumulate) {
  (void)eps;  // it is in inverse_rms
  TORCH_CHECK(inverse_rms_R.defined() && dy_RD.is_contiguous(), "bug: rms_norm: dy ", dy_RD.sizes(),
              " without the forward's statistics");
  const at::TensorOptions wide = x_RD.options().dtype(at::kFloat);
  const bool direct = dweight_D.scalar_type() == at::kFloat;
  const at::Tensor sum_D = direct ? dweight_D : at::empty(dweight_D.sizes(), wide);
  at::Tensor workspace = at::empty({kernels::kNormGradBlocks, x_RD.size(1)}, wide);
  at::Tensor dx_RD = at::empty(x_RD.sizes(), x_RD.options());
  kernels::RmsNormGradParams p = {};
  p.sum = Bf16Of(x_RD);
  p.weight = Bf16Of(weight_D);
  p.rstd = FloatOf(inverse_rms_R);
  p.dout = Bf16Of(dy_RD);
  p.d_sum = Bf16Of(dresidual_RD);
  p.dx = Bf16Of(dx_RD);
  p.d_weight = FloatOf(sum_D);
  p.workspace = FloatOf(workspace);
  p.tokens = x_RD.size(0);
  p.hidden = static_cast<int>(x_RD.size(1));
  p.accumulate = direct && accumulate;
  p.kind = kernels::NormKind::kLlama;
  CheckKernel(kernels::RmsNormGrad(p, CurrentStream()), "rms_norm backward");
  if (!direct) PutGradient(sum_D, accumulate, dweight_D);
  return dx_RD;
}

}  // namespace switchyard::ops::on_cuda
