#include "worker/trainer/ops/rms_norm.h"

#include <ATen/ATen.h>

#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops {
namespace {

at::Tensor InverseRms(const at::Tensor& x_RD, double eps) {
  return (x_RD * x_RD).mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
}

void Check(const at::Tensor& x_RD, const at::Tensor& weight_D) {
  TORCH_CHECK(weight_D.dim() == 1 && x_RD.size(-1) == weight_D.size(0), "rms_norm: x ",
              x_RD.sizes(), " does not fit weight ", weight_D.sizes());
}

}  // namespace

RmsNormOutput RmsNormForward(const at::Tensor& x_RD, const at::Tensor& weight_D, double eps) {
  Check(x_RD, weight_D);
#if defined(SY_CUDA)
  if (on_cuda::ServesRmsNorm(x_RD)) return on_cuda::RmsNormForward(x_RD, weight_D, eps);
#endif
  const at::Tensor wide = x_RD.to(AccumulateType(x_RD));
  return {(wide * InverseRms(wide, eps)).to(x_RD.scalar_type()).mul_(weight_D), {}};
}

RmsNormOutput AddRmsNormForward(at::Tensor x_RD, const at::Tensor& residual_RD,
                                const at::Tensor& weight_D, double eps) {
  Check(x_RD, weight_D);
#if defined(SY_CUDA)
  if (on_cuda::ServesRmsNorm(x_RD)) {
    return on_cuda::AddRmsNormForward(x_RD, residual_RD, weight_D, eps);
  }
#endif
  return RmsNormForward(x_RD.add_(residual_RD), weight_D, eps);
}

at::Tensor RmsNormBackward(const at::Tensor& dy_RD, const at::Tensor& x_RD,
                           [[maybe_unused]] const at::Tensor& inverse_rms_R,
                           const at::Tensor& weight_D, double eps, const at::Tensor& dresidual_RD,
                           at::Tensor dweight_D, bool accumulate) {
  Check(x_RD, weight_D);
#if defined(SY_CUDA)
  if (on_cuda::ServesRmsNorm(x_RD)) {
    return on_cuda::RmsNormBackward(dy_RD, x_RD, inverse_rms_R, weight_D, eps, dresidual_RD,
                                    dweight_D, accumulate);
  }
#endif
  const at::ScalarType type = AccumulateType(x_RD);
  const at::Tensor wide = x_RD.to(type);
  const at::Tensor dy = dy_RD.to(type);
  const at::Tensor inverse = InverseRms(wide, eps);
  const at::Tensor normed = wide * inverse;
  // The weight met the rounded value.
  const at::Tensor rounded =
      x_RD.scalar_type() == type ? normed : normed.to(x_RD.scalar_type()).to(type);
  PutGradient((dy * rounded).reshape({-1, x_RD.size(-1)}).sum(0), accumulate, dweight_D);
  at::Tensor dnormed = dy * weight_D.to(type);
  const at::Tensor mean = (dnormed * normed).mean(-1, /*keepdim=*/true);
  at::Tensor dx = dnormed.sub_(normed * mean).mul_(inverse);
  if (dresidual_RD.defined()) dx.add_(dresidual_RD);
  return dx.to(x_RD.scalar_type());
}

}  // namespace switchyard::ops
