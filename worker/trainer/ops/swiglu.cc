#include "worker/trainer/ops/swiglu.h"

#include <ATen/ATen.h>

#include "worker/trainer/ops/dtype.h"

namespace switchyard::ops {

at::Tensor SwigluForward(const at::Tensor& z_R2F, const at::Tensor& scale_R) {
  TORCH_CHECK(z_R2F.dim() == 2 && z_R2F.size(1) % 2 == 0, "swiglu: z must be [rows, 2 F], got ",
              z_R2F.sizes());
  const int64_t f = z_R2F.size(1) / 2;
  at::Tensor y_RF = at::silu(z_R2F.narrow(1, 0, f)).mul_(z_R2F.narrow(1, f, f));
  if (scale_R.defined()) y_RF.mul_(scale_R.to(y_RF.scalar_type()).unsqueeze(1));
  return y_RF;
}

SwigluGradients SwigluBackward(const at::Tensor& dy_RF, const at::Tensor& z_R2F,
                               const at::Tensor& scale_R) {
  const int64_t f = z_R2F.size(1) / 2;
  const at::ScalarType type = AccumulateType(z_R2F);
  const at::Tensor gate = z_R2F.narrow(1, 0, f).to(type);
  const at::Tensor up = z_R2F.narrow(1, f, f).to(type);
  const at::Tensor silu = at::silu(gate);
  at::Tensor dy = dy_RF.to(type);
  SwigluGradients out;
  if (scale_R.defined()) {
    out.dscale_R = (silu * up).mul_(dy).sum(1).to(scale_R.scalar_type());
    dy = dy * scale_R.to(type).unsqueeze(1);
  }
  out.dz_R2F = at::empty(z_R2F.sizes(), z_R2F.options());
  at::Tensor dgate = out.dz_R2F.narrow(1, 0, f);
  at::Tensor dup = out.dz_R2F.narrow(1, f, f);
  at::mul_out(dup, silu, dy);
  if (z_R2F.scalar_type() == type) {
    at::silu_backward_out(dgate, dy * up, gate);
  } else {
    dgate.copy_(at::silu_backward(dy * up, gate));
  }
  return out;
}

}  // namespace switchyard::ops
