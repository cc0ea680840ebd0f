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
  for (int64_t i = 0; i < p.size; ++i) {
    const float g = ToFloat(p.grad[i]) * scale;
    const float m = p.beta1 * ToFloat(p.m[i]) + (1.f - p.beta1) * g;
    const float v = p.beta2 * ToFloat(p.v[i]) + (1.f - p.beta2) * g * g;
    float w =
        p.remainder != nullptr ? JoinMaster(p.weight[i], p.remainder[i]) : ToFloat(p.weight[i]);
    w -= p.learning_rate * p.weight_decay * w;
    w -= p.learning_rate * (m / p.correction1) / (std::sqrt(v / p.correction2) + p.eps);
    const uint32_t bits = RoundingBits(p.seed, p.first_index + i);
    p.m[i] = StoreMoment<Moment>(m, bits & 0xffffu);
    p.v[i] = StoreMoment<Moment>(v, bits >> 16);
    if (p.remainder != nullptr) {
      SplitMaster(w, &p.weight[i], &p.remainder[i]);
    } else {
      p.weight[i] = ToBf16(w);
    }
  }
}

void FinishGradNormRef(const FinishGradNormParams& p);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_ADAMW_ADAMW_REF_H_
