#include "kernels/rmsnorm/rmsnorm_ref.h"

#include <cmath>
#include <vector>

namespace switchyard::kernels {

void RmsNormRef(const RmsNormParams& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    std::vector<float> s(p.hidden);
    float squares = 0.f;
    for (int i = 0; i < p.hidden; ++i) {
      const int64_t at = t * p.hidden + i;
      s[i] = ToFloat(p.x[at]);
      if (p.residual != nullptr) {
        s[i] = RoundBf16(s[i] + ToFloat(p.residual[at]));
        p.sum[at] = ToBf16(s[i]);
      }
      squares += s[i] * s[i];
    }
    const float rstd = 1.f / std::sqrt(squares / p.hidden + p.eps);
    if (p.rstd != nullptr) p.rstd[t] = rstd;
    for (int i = 0; i < p.hidden; ++i) {
      const float w = ToFloat(p.weight[i]);
      const float xn = s[i] * rstd;
      float out = xn * w;
      if (p.kind == NormKind::kLlama) out = RoundBf16(xn) * w;
      if (p.kind == NormKind::kZeroCentred) out = xn * (1.f + w);
      p.out[t * p.hidden + i] = ToBf16(out);
    }
  }
}

void RmsNormGradRef(const RmsNormGradParams& p) {
  std::vector<float> d_weight(p.hidden, 0.f);
  for (int64_t t = 0; t < p.tokens; ++t) {
    const int64_t row = t * p.hidden;
    std::vector<float> g(p.hidden), xn(p.hidden);
    float dot = 0.f;
    for (int i = 0; i < p.hidden; ++i) {
      const float dout = ToFloat(p.dout[row + i]);
      xn[i] = ToFloat(p.sum[row + i]) * p.rstd[t];
      g[i] = dout * (ToFloat(p.weight[i]) + (p.kind == NormKind::kZeroCentred ? 1.f : 0.f));
      dot += g[i] * xn[i];
      d_weight[i] += dout * (p.kind == NormKind::kLlama ? RoundBf16(xn[i]) : xn[i]);
    }
    for (int i = 0; i < p.hidden; ++i) {
      const float passed = p.d_sum != nullptr ? ToFloat(p.d_sum[row + i]) : 0.f;
      p.dx[row + i] = ToBf16(passed + p.rstd[t] * (g[i] - xn[i] * (dot / p.hidden)));
    }
  }
  for (int i = 0; i < p.hidden; ++i) {
    p.d_weight[i] = p.accumulate ? p.d_weight[i] + d_weight[i] : d_weight[i];
  }
}

}  // namespace switchyard::kernels
