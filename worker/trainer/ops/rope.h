// Rotary position embedding, half-split: with x = [x1 | x2] along the head,
//     y = [x1 cos - x2 sin | x2 cos + x1 sin]
// (cosines and sines are rounded to the dtype of x first, as Transformers does), and the RMSNorm of
// every query and key head in front of it (ops/rms_norm.h), in one pass where our kernel serves.
//
// T tokens, N query heads, M key heads, d head_dim, r = d / 2, P positions. CUDA, bf16: d is 64 or
// 128; else composed of ATen's operations.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_ROPE_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_ROPE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace switchyard::ops {

// Cosines and sines of positions 0 to P - 1; made once, used by many micro-batches.
struct RopeTable {
  at::Tensor cos_Pr;  // fp32, rounded to the dtype of the activations
  at::Tensor sin_Pr;
};
// inverse_frequencies_r fp32 on the CPU; angles are computed there, in fp32. `type`: of the
// activations. Waits for the device that the table is copied to.
RopeTable MakeRopeTable(const at::Tensor& inverse_frequencies_r, double attention_scale,
                        int64_t num_positions, at::ScalarType type, at::Device device);

// What the tokens of one micro-batch turn by.
struct RopeAngles {
  // Of each token, in the dtype of the activations; undefined where the kernel looks them up.
  at::Tensor cos_Tr;
  at::Tensor sin_Tr;
  RopeTable table;
  at::Tensor positions_T;
};
// positions_T: int32 below the table's size, on its device.
RopeAngles MakeRopeAngles(const RopeTable& table, const at::Tensor& positions_T,
                          at::ScalarType type);

// [T, N, d] -> [T, N, d], contiguous; composed.
at::Tensor RopeForward(const at::Tensor& x_TNd, const RopeAngles& angles);
// The transpose: a rotation the other way.
at::Tensor RopeBackward(const at::Tensor& dy_TNd, const RopeAngles& angles);

struct QueriesAndKeys {
  at::Tensor q_TNd;
  at::Tensor k_TMd;
};
struct QkNorm {
  at::Tensor q_d;  // weights, or their gradients
  at::Tensor k_d;
  double eps = 0;
};
// `raw` may be slices of one fused projection: heads of a token are dense, tokens any multiple of 8
// elements apart. The result is dense.
QueriesAndKeys QkNormRopeForward(const QueriesAndKeys& raw, const QkNorm& norm,
                                 const RopeAngles& angles);
// `d`: gradients of the forward's result, dense. Writes those of its input to `draw` (slices, as
// `raw`) and adds those of the norm weights to `dnorm`, or overwrites it.
void QkNormRopeBackward(const QueriesAndKeys& d, const QueriesAndKeys& raw, const QkNorm& norm,
                        const RopeAngles& angles, const QueriesAndKeys& draw, QkNorm dnorm,
                        bool accumulate);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_ROPE_H_
