#include "kernels/router_topk/router_topk_ref.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace switchyard::kernels {
namespace {

std::vector<float> Softmax(const Bf16* logits, int experts) {
  std::vector<float> p(experts);
  float max = -INFINITY, sum = 0.f;
  for (int e = 0; e < experts; ++e) max = std::max(max, ToFloat(logits[e]));
  for (int e = 0; e < experts; ++e) sum += p[e] = std::exp(ToFloat(logits[e]) - max);
  for (float& v : p) v /= sum;
  return p;
}

}  // namespace

void RouterTopKRef(const RouterTopKParams& p) {
  std::vector<int32_t> counts(p.experts, 0);
  std::vector<double> mass(p.experts, 0.);
  for (int64_t t = 0; t < p.tokens; ++t) {
    const std::vector<float> prob = Softmax(p.logits + t * p.experts, p.experts);
    std::vector<int32_t> order(p.experts);
    std::iota(order.begin(), order.end(), 0);
    // By logit: probabilities of unlike logits may round to one float.
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return ToFloat(p.logits[t * p.experts + a]) > ToFloat(p.logits[t * p.experts + b]);
    });
    float sum = 0.f;
    for (int k = 0; k < p.top_k; ++k) sum += prob[order[k]];
    for (int k = 0; k < p.top_k; ++k) {
      const float w = p.normalize ? prob[order[k]] / sum : prob[order[k]];
      p.ids[t * p.top_k + k] = order[k];
      p.weights[t * p.top_k + k] = p.round_weights ? RoundBf16(w) : w;
      ++counts[order[k]];
    }
    for (int e = 0; e < p.experts; ++e) mass[e] += prob[e];
  }
  p.offsets[0] = 0;
  for (int e = 0; e < p.experts; ++e) p.offsets[e + 1] = p.offsets[e] + counts[e];
  std::vector<int32_t> next(p.offsets, p.offsets + p.experts);
  for (int64_t n = 0; n < p.tokens * p.top_k; ++n) p.row_of[n] = next[p.ids[n]]++;
  for (int e = 0; e < p.experts && p.prob_sums != nullptr; ++e) {
    p.prob_sums[e] = static_cast<float>(mass[e]);
  }
}

void RouterTopKGradRef(const RouterTopKGradParams& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    const std::vector<float> prob = Softmax(p.logits + t * p.experts, p.experts);
    std::vector<float> d(p.experts, 0.f);
    for (int e = 0; e < p.experts && p.d_prob != nullptr; ++e) d[e] = p.d_prob[e];
    float sum = 0.f, inner = 0.f;
    for (int k = 0; k < p.top_k; ++k) sum += prob[p.ids[t * p.top_k + k]];
    for (int k = 0; k < p.top_k; ++k) {
      inner += prob[p.ids[t * p.top_k + k]] / sum * p.d_weights[t * p.top_k + k];
    }
    for (int k = 0; k < p.top_k; ++k) {
      const float dw = p.d_weights[t * p.top_k + k];
      d[p.ids[t * p.top_k + k]] += p.normalize ? (dw - inner) / sum : dw;
    }
    float dot = 0.f;
    for (int e = 0; e < p.experts; ++e) dot += prob[e] * d[e];
    for (int e = 0; e < p.experts; ++e)
      p.d_logits[t * p.experts + e] = ToBf16(prob[e] * (d[e] - dot));
  }
}

}  // namespace switchyard::kernels
