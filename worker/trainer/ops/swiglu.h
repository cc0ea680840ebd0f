// y = silu(gate) * up, times one scale per row: the routing weight, which goes in before an
// expert's down projection so that its gradient needs no expert output.
//
// R rows, F hidden features; z = [gate | up].
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_SWIGLU_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_SWIGLU_H_

#include <ATen/core/Tensor.h>

namespace switchyard::ops {

// z [R, 2F], scale [R] or undefined (1) -> [R, F] in the dtype of z. silu and each product are
// rounded to it, as Transformers does.
at::Tensor SwigluForward(const at::Tensor& z_R2F, const at::Tensor& scale_R);

struct SwigluGradients {
  at::Tensor dz_R2F;
  at::Tensor dscale_R;  // undefined without a scale
};
// In the accumulation dtype, rounded once.
SwigluGradients SwigluBackward(const at::Tensor& dy_RF, const at::Tensor& z_R2F,
                               const at::Tensor& scale_R);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_SWIGLU_H_
