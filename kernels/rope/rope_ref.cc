#include "kernels/rope/rope_ref.h"

#include <cmath>
#include <vector>

namespace switchyard::kernels {
namespace {

float InverseRms(const Bf16* x, int size, float eps) {
  float squares = 0.f;
  for (int i = 0; i < size; ++i) squares += ToFloat(x[i]) * ToFloat(x[i]);
  return 1.f / std::sqrt(squares / size + eps);
}

void Heads(const RopeParams& p, const Bf16* x, int64_t stride, int heads, const Bf16* weight,
           Bf16* out) {
  const int half = p.head_dim / 2;
  for (int64_t t = 0; t < p.tokens; ++t) {
    const float* cos = p.cos + int64_t{p.positions[t]} * half;
    const float* sin = p.sin + int64_t{p.positions[t]} * half;
    for (int h = 0; h < heads; ++h) {
      const Bf16* in = x + t * stride + h * p.head_dim;
      Bf16* to = out + (t * heads + h) * p.head_dim;
      const float rstd = InverseRms(in, p.head_dim, p.eps);
      std::vector<float> n(p.head_dim);
      for (int i = 0; i < p.head_dim; ++i) {
        n[i] = ToFloat(in[i]);
        if (weight != nullptr) n[i] = RoundBf16(RoundBf16(n[i] * rstd) * ToFloat(weight[i]));
      }
      for (int i = 0; i < half; ++i) {
        to[i] = ToBf16(n[i] * cos[i] - n[i + half] * sin[i]);
        to[i + half] = ToBf16(n[i + half] * cos[i] + n[i] * sin[i]);
      }
    }
  }
}

void HeadsGrad(const RopeGradParams& p, const Bf16* x, int64_t stride, int heads,
               const Bf16* weight, const Bf16* d_out, Bf16* dx, float* d_weight) {
  const int half = p.head_dim / 2;
  std::vector<float> sum(p.head_dim, 0.f);
  for (int64_t t = 0; t < p.tokens; ++t) {
    const float* cos = p.cos + int64_t{p.positions[t]} * half;
    const float* sin = p.sin + int64_t{p.positions[t]} * half;
    for (int h = 0; h < heads; ++h) {
      const Bf16* d = d_out + (t * heads + h) * p.head_dim;
      Bf16* to = dx + t * stride + h * p.head_dim;
      std::vector<float> dn(p.head_dim);
      for (int i = 0; i < half; ++i) {
        dn[i] = ToFloat(d[i]) * cos[i] + ToFloat(d[i + half]) * sin[i];
        dn[i + half] = ToFloat(d[i + half]) * cos[i] - ToFloat(d[i]) * sin[i];
      }
      if (weight == nullptr) {
        for (int i = 0; i < p.head_dim; ++i) to[i] = ToBf16(dn[i]);
        continue;
      }
      const Bf16* in = x + t * stride + h * p.head_dim;
      const float rstd = InverseRms(in, p.head_dim, p.eps);
      float dot = 0.f;
      std::vector<float> xn(p.head_dim);
      for (int i = 0; i < p.head_dim; ++i) {
        xn[i] = ToFloat(in[i]) * rstd;
        dot += dn[i] * ToFloat(weight[i]) * xn[i];
        sum[i] += dn[i] * RoundBf16(xn[i]);
      }
      for (int i = 0; i < p.head_dim; ++i) {
        to[i] = ToBf16(rstd * (dn[i] * ToFloat(weight[i]) - xn[i] * (dot / p.head_dim)));
      }
    }
  }
  for (int i = 0; i < p.head_dim && weight != nullptr; ++i) {
    d_weight[i] = p.accumulate ? d_weight[i] + sum[i] : sum[i];
  }
}

}  // namespace

void RopeRef(const RopeParams& p) {
  Heads(p, p.q, p.q_stride, p.q_heads, p.q_weight, p.q_out);
  Heads(p, p.k, p.k_stride, p.k_heads, p.k_weight, p.k_out);
}

void RopeGradRef(const RopeGradParams& p) {
  HeadsGrad(p, p.q, p.q_stride, p.q_heads, p.q_weight, p.dq_out, p.dq, p.dq_weight);
  HeadsGrad(p, p.k, p.k_stride, p.k_heads, p.k_weight, p.dk_out, p.dk, p.dk_weight);
}

}  // namespace switchyard::kernels
