// RMS norm over the last dim with the residual addition in front of it, forward and backward.
//   s = x + residual (rounded to bf16);  xn = s * rstd, rstd = rsqrt(mean(s^2) + eps), all in fp32
// kLlama: out = w * bf16(xn), rounded again (Llama, Qwen, Mixtral, ...); kFloatWeight: out = bf16(w
// * xn); kZeroCentred: out = bf16(xn * (1 + w)).
//
// hidden % 8 == 0, hidden <= 8192; pointers are 16-byte aligned; tokens == 0 is valid.
// Deterministic: the weight gradient is summed per block and then over blocks in order. Allocates
// nothing; asynchronous on `stream`. Errors: cudaErrorInvalidValue for an unsupported shape, else
// the launch error.
#ifndef SWITCHYARD_KERNELS_RMSNORM_RMSNORM_H_
#define SWITCHYARD_KERNELS_RMSNORM_RMSNORM_H_

#include "kernels/common/dtype.h"
#include "kernels/common/launch.h"

namespace switchyard::kernels {

enum class NormKind { kLlama, kFloatWeight, kZeroCentred };

struct RmsNormParams {
  const Bf16* x;         // in   [tokens, hidden]
  const Bf16* residual;  // in   [tokens, hidden]; null: s is x
  const Bf16* weight;    // in   [hidden]
  Bf16* sum;             // out  [tokens, hidden], s; null with residual; may be x or residual
  Bf16* out;             // out  [tokens, hidden]
  float* rstd;           // out  [tokens]; null: not written
  int64_t tokens;
  int hidden;
  float eps;
  NormKind kind;
};
cudaError_t RmsNorm(const RmsNormParams& p, cudaStream_t stream);

// Blocks whose partial weight gradients RmsNormGrad sums: rows of its workspace.
constexpr int kNormGradBlocks = 132;

// dx = d_sum + rstd * (g - xn * mean(g * xn)), g = dout * weight;  d_weight (+)= sum over tokens of
// dout * xn. (kLlama rounds xn to bf16 for d_weight, as its forward did.)
struct RmsNormGradParams {
  const Bf16* sum;     // in      [tokens, hidden], s of the forward
  const Bf16* weight;  // in      [hidden]
  const float* rstd;   // in      [tokens]
  const Bf16* dout;    // in      [tokens, hidden]
  const Bf16* d_sum;  // in      [tokens, hidden], gradient that reaches s past the norm; null: zero
  Bf16* dx;           // out     [tokens, hidden]; may be dout or d_sum
  float* d_weight;    // in out  [hidden]
  float* workspace;   // scratch [kNormGradBlocks, hidden]
  int64_t tokens;
  int hidden;
  bool accumulate;  // add into d_weight
  NormKind kind;
};
cudaError_t RmsNormGrad(const RmsNormGradParams& p, cudaStream_t stream);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_RMSNORM_RMSNORM_H_
