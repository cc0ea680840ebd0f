// AdamW over a flat range of parameters whose fp32 master is exact in 4 bytes: the bf16 weight and
// a 16-bit remainder, master bits = (weight bits << 16) + remainder. The weight is the master
// rounded to nearest (ties away from zero), so the model computes with what the optimizer holds.
// Decoupled weight decay, bias correction by the caller's step.
//
// Clipping and the non-finite check come folded in from GradNorm: the update reads `control` on the
// device; when the norm is not finite nothing is changed. Moments are float or Bf16; Bf16 moments
// are rounded stochastically with bits that depend only on (key, index). No operation is fused or
// reordered: the results are the CPU's, bit for bit. size % 8 == 0, pointers are 16-byte aligned.
// Allocates nothing; asynchronous on `stream`. Errors: cudaErrorInvalidValue for an unsupported
// size, else the launch error.
#ifndef SWITCHYARD_KERNELS_ADAMW_ADAMW_H_
#define SWITCHYARD_KERNELS_ADAMW_ADAMW_H_

#include "kernels/common/dtype.h"
#include "kernels/common/launch.h"

namespace switchyard::kernels {

// Written by FinishGradNorm, read by AdamW.
struct StepControl {
  float norm;     // of gradients / divisor, before clipping; not finite when any of them is not
  float scale;    // gradients are multiplied by it: 1 / divisor, times clipping
  int32_t apply;  // 0: skip the update
};

// The fp32 master as one word, apart and together again; exact both ways for finite values.
SY_HOST_DEVICE inline void SplitMaster(float master, Bf16* weight, int16_t* remainder) {
  const uint32_t bits = FloatBits(master);
  weight->bits = static_cast<uint16_t>((bits + 0x8000u) >> 16);
  *remainder = static_cast<int16_t>(bits & 0xffffu);
}
SY_HOST_DEVICE inline float JoinMaster(Bf16 weight, int16_t remainder) {
  return BitsFloat((static_cast<uint32_t>(weight.bits) << 16) +
                   static_cast<uint32_t>(static_cast<int32_t>(remainder)));
}

// Random bits of element `index` (SplitMix64), equal on CPU and GPU: bits 0-15 round m, 16-31 v,
// 32-47 a weight without master. `key` mixes seed, update and parameter; worker/trainer/optim draws
// the same.
SY_HOST_DEVICE inline uint64_t RoundingBits(uint64_t key, uint64_t index) {
  uint64_t x = key + (index + 1) * 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
// Rounds up with the probability that the cut bits say; `bits` in [0, 65535].
SY_HOST_DEVICE inline Bf16 RoundStochastic(float value, uint32_t bits) {
  return Bf16{static_cast<uint16_t>((FloatBits(value) + bits) >> 16)};
}

// Scalars of one update, rounded to fp32 by the caller (torch.optim.AdamW's operations, in its
// order):
//   g = grad * scale + l2 * w;  w *= weight_keep;  m += beta1_weight * (g - m);
//   v = v * beta2 + beta2_weight * g * g;  w -= step_size * m / (sqrt(v) / sqrt_correction2 + eps)
struct AdamWScalars {
  float weight_keep;   // 1 - learning rate * decay; 1 for Adam
  float l2;            // decay that is added to the gradient; 0 for AdamW
  float beta1_weight;  // 1 - beta1
  float beta2;
  float beta2_weight;      // 1 - beta2
  float sqrt_correction2;  // sqrt(1 - beta2^update)
  float eps;
  float step_size;  // learning rate / (1 - beta1^update)
};

template <class Grad, class Moment>
struct AdamWParams {
  Bf16* weight;                // in out  [size]
  int16_t* remainder;          // in out  [size]; null: no master, the weight alone is the state and
                               //         is rounded stochastically, as Bf16 moments are
  Moment* m;                   // in out  [size]
  Moment* v;                   // in out  [size]
  const Grad* grad;            // in      [size]
  const StepControl* control;  // in      one, on the device; null: scale 1, apply
  int64_t size;
  uint64_t key;          // of the stochastic rounding
  uint64_t first_index;  // of element 0 in the whole parameter: shards draw what the whole would
  AdamWScalars scalars;
};
cudaError_t AdamW(const AdamWParams<float, float>& p, cudaStream_t stream);
cudaError_t AdamW(const AdamWParams<float, Bf16>& p, cudaStream_t stream);
cudaError_t AdamW(const AdamWParams<Bf16, float>& p, cudaStream_t stream);
cudaError_t AdamW(const AdamWParams<Bf16, Bf16>& p, cudaStream_t stream);

// Floats that one GradNorm call writes.
constexpr int kNormPartials = 1056;

// partial[i] = sum of squares of a fixed share of grad; one pass. A value that is not finite makes
// its partial not finite.
template <class Grad>
struct GradNormParams {
  const Grad* grad;  // in   [size]
  float* partial;    // out  [kNormPartials]
  int64_t size;
};
cudaError_t GradNorm(const GradNormParams<float>& p, cudaStream_t stream);
cudaError_t GradNorm(const GradNormParams<Bf16>& p, cudaStream_t stream);

// Adds all partials in order (of every range, and of other ranks' sums) in double and decides.
struct FinishGradNormParams {
  const float* partial;  // in   [num_partials]
  StepControl* control;  // out  one
  int64_t num_partials;
  float divisor;   // gradients are divided by it (token count, accumulation); norm is after the
                   // division
  float max_norm;  // <= 0: no clipping
};
cudaError_t FinishGradNorm(const FinishGradNormParams& p, cudaStream_t stream);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_ADAMW_ADAMW_H_
