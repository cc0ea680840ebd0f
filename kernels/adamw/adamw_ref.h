// Plain loops for adamw.h, on host pointers.
#ifndef SWITCHYARD_KERNELS_ADAMW_ADAMW_REF_H_
#define SWITCHYARD_KERNELS_ADAMW_ADAMW_REF_H_

#include <cmath>

#include "kernels/adamw/adamw.h"

namespace switchyard::kernels {

template <class Moment>
Moment StoreMoment(float value, uint32_t bits);
template <>
inline float StoreMoment<float>(float value, uint32_t) {
  return value;
}
template <>
inline Bf16 StoreMoment<Bf16>(float value, uint32_t bits) {
  return RoundStochastic(value, bits);
}

template <class Grad, class Moment>
void AdamWRef(const AdamWParams<Grad, Moment>& p) {
  if (p.control != nullptr && p.control->apply == 0) return;
  const float scale = p.control != nullptr ? p.control->scale : 1.f;
  const AdamWScalars& c = p.scalars;
  for (int64_t i = 0; i < p.size; ++i) {
    float w =
        p.remainder != nullptr ? JoinMaster(p.weight[i], p.remainder[i]) : ToFloat(p.weight[i]);
    const float g = ToFloat(p.grad[i]) * scale + c.l2 * w;
    w *= c.weight_keep;
    const float old_m = ToFloat(p.m[i]);
    const float m = old_m + c.beta1_weight * (g - old_m);
    const float v = ToFloat(p.v[i]) * c.beta2 + c.beta2_weight * g * g;
    w -= c.step_size * m / (std::sqrt(v) / c.sqrt_correction2 + c.eps);
    const uint64_t bits = RoundingBits(p.key, p.first_index + i);
    p.m[i] = StoreMoment<Moment>(m, bits & 0xffffu);
    p.v[i] = StoreMoment<Moment>(v, (bits >> 16) & 0xffffu);
    if (p.remainder != nullptr) {
      SplitMaster(w, &p.weight[i], &p.remainder[i]);
    } else {
      p.weight[i] = RoundStochastic(w, (bits >> 32) & 0xffffu);
    }
  }
}

void FinishGradNormRef(const FinishGradNormParams& p);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_ADAMW_ADAMW_REF_H_
