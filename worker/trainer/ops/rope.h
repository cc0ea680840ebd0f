// Rotary position embedding, half-split: with x = [x1 | x2] along the head,
//     y = [x1 cos - x2 sin | x2 cos + x1 sin]
// in the dtype of x (cosines and sines are rounded to it first, as Transformers does).
//
// T tokens, N heads, d head_dim, r = d / 2.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_ROPE_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_ROPE_H_

#include <ATen/core/Tensor.h>

namespace switchyard::ops {

struct RopeAngles {
  at::Tensor cos_Tr;  // dtype of the activations
  at::Tensor sin_Tr;
};

// positions_T int64, inverse_frequencies_r fp32; angles are computed in fp32.
RopeAngles MakeRopeAngles(const at::Tensor& positions_T, const at::Tensor& inverse_frequencies_r,
                          double attention_scale, at::ScalarType type);

// [T, N, d] -> [T, N, d], contiguous.
at::Tensor RopeForward(const at::Tensor& x_TNd, const RopeAngles& angles);
// The transpose: a rotation the other way.
at::Tensor RopeBackward(const at::Tensor& dy_TNd, const RopeAngles& angles);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_ROPE_H_
