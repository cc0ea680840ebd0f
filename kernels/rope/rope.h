// RMS norm of every query and key head, then rotary embedding, forward and backward in one pass
// each. Half-split rotation: out = [n1 cos - n2 sin | n2 cos + n1 sin] in fp32, rounded once, where
// n = weight * bf16(x * rstd), rounded (models.md 1.1 A), or n = x without weights.
//
// q and k may be slices of one fused projection: their token strides are given. head_dim is 64 or
// 128; strides % 8 == 0, pointers are 16-byte aligned; tokens == 0 is valid. Deterministic.
// Allocates nothing; asynchronous on `stream`. Errors: cudaErrorInvalidValue for an unsupported
// shape, else the launch error.
#ifndef SWITCHYARD_KERNELS_ROPE_ROPE_H_
#define SWITCHYARD_KERNELS_ROPE_ROPE_H_

#include "kernels/common/dtype.h"
#include "kernels/common/launch.h"

namespace switchyard::kernels {

struct RopeParams {
  const Bf16* q;             // in   [tokens, q_heads, head_dim], tokens q_stride apart
  const Bf16* k;             // in   [tokens, k_heads, head_dim], tokens k_stride apart
  const Bf16* q_weight;      // in   [head_dim]; null: no norm (then k_weight is null too)
  const Bf16* k_weight;      // in   [head_dim]
  const float* cos;          // in   [positions, head_dim / 2], as the caller rounded it
  const float* sin;          // in   [positions, head_dim / 2]
  const int32_t* positions;  // in   [tokens], restarting per document
  Bf16* q_out;               // out  [tokens, q_heads, head_dim], dense
  Bf16* k_out;               // out  [tokens, k_heads, head_dim], dense
  int64_t tokens, q_stride, k_stride;
  int q_heads, k_heads, head_dim;
  float eps;
};
cudaError_t Rope(const RopeParams& p, cudaStream_t stream);

// Rows of RopeGrad's workspace.
constexpr int kRopeGradBlocks = 264;

// Gradients of q and k, to the strides of the forward's inputs, and of the norm weights. rstd is
// computed again from q and k.
struct RopeGradParams {
  const Bf16* q;             // in   as in the forward; not read without weights
  const Bf16* k;             // in
  const Bf16* q_weight;      // in   [head_dim]; null: no norm
  const Bf16* k_weight;      // in   [head_dim]
  const float* cos;          // in   [positions, head_dim / 2]
  const float* sin;          // in   [positions, head_dim / 2]
  const int32_t* positions;  // in   [tokens]
  const Bf16* dq_out;        // in   [tokens, q_heads, head_dim], dense
  const Bf16* dk_out;        // in   [tokens, k_heads, head_dim], dense
  Bf16* dq;                  // out  tokens q_stride apart; may be q
  Bf16* dk;                  // out  tokens k_stride apart; may be k
  float* dq_weight;          // in out  [head_dim]; null without weights
  float* dk_weight;          // in out  [head_dim]
  float* workspace;          // scratch [kRopeGradBlocks, 2, head_dim]; null without weights
  int64_t tokens, q_stride, k_stride;
  int q_heads, k_heads, head_dim;
  float eps;
  bool accumulate;  // add into the weight gradients
};
cudaError_t RopeGrad(const RopeGradParams& p, cudaStream_t stream);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_ROPE_ROPE_H_
