#include "kernels/cross_entropy/cross_entropy_ref.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace switchyard::kernels {

void CrossEntropyRef(const CrossEntropyParams& p) {
  const float scale = p.scale != nullptr ? *p.scale : 1.f;
  for (int64_t row = 0; row < p.rows; ++row) {
    Bf16* logits = p.logits + row * p.vocabulary;
    const int32_t label = p.labels[row];
    float max = -INFINITY;
    double sum = 0;
    for (int v = 0; v < p.vocabulary; ++v) max = std::max(max, ToFloat(logits[v]));
    for (int v = 0; v < p.vocabulary; ++v) sum += std::exp(ToFloat(logits[v]) - max);
    const float log_sum = max + static_cast<float>(std::log(sum));
    p.loss[row] = label >= 0 ? log_sum - ToFloat(logits[label]) : 0.f;
    for (int v = 0; v < p.vocabulary && p.gradient; ++v) {
      const float probability = std::exp(ToFloat(logits[v]) - log_sum);
      logits[v] = ToBf16(label >= 0 ? scale * (probability - (v == label ? 1.f : 0.f)) : 0.f);
    }
  }
}

void LinearCrossEntropyRef(const LinearCrossEntropyParams<float>& p) {
  std::vector<float> dw(static_cast<size_t>(p.vocabulary) * p.hidden, 0.f);
  std::vector<Bf16> logits(p.vocabulary);
  for (int64_t t = 0; t < p.tokens; ++t) {
    const Bf16* h = p.h + t * p.hidden;
    for (int v = 0; v < p.vocabulary; ++v) {
      float sum = 0.f;
      for (int i = 0; i < p.hidden; ++i)
        sum += ToFloat(h[i]) * ToFloat(p.w[int64_t{v} * p.hidden + i]);
      logits[v] = ToBf16(sum);
    }
    CrossEntropyRef(
        {logits.data(), p.labels + t, p.scale, p.loss + t, 1, p.vocabulary, p.dh != nullptr});
    if (p.dh == nullptr) continue;
    std::vector<float> dh(p.hidden, 0.f);
    for (int v = 0; v < p.vocabulary; ++v) {
      const float d = ToFloat(logits[v]);
      for (int i = 0; i < p.hidden; ++i) {
        dh[i] += d * ToFloat(p.w[int64_t{v} * p.hidden + i]);
        dw[int64_t{v} * p.hidden + i] += d * ToFloat(h[i]);
      }
    }
    for (int i = 0; i < p.hidden; ++i) p.dh[t * p.hidden + i] = ToBf16(dh[i]);
  }
  for (size_t i = 0; i < dw.size() && p.dh != nullptr && p.dw != nullptr; ++i) {
    p.dw[i] = p.accumulate ? p.dw[i] + dw[i] : dw[i];
  }
}

}  // namespace switchyard::kernels
