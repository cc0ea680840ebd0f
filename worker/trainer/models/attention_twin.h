// The specification of models/attention.h in plain ATen, for autograd: one mask over all tokens,
// repeated heads, nothing saved. Used by tests only.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_ATTENTION_TWIN_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_ATTENTION_TWIN_H_

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <vector>

#include "worker/trainer/models/model_config.h"
#include "worker/trainer/models/parameters.h"
#include "worker/trainer/models/rope_frequencies.h"

namespace switchyard {

inline at::Tensor RmsNormTwin(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return weight * (x / at::sqrt(x.pow(2).mean(-1, /*keepdim=*/true) + eps));
}

// x [T, N, d]: x cos + rotate_half(x) sin.
inline at::Tensor RopeTwin(const ModelConfig& config, const at::Tensor& x,
                           const at::Tensor& positions) {
  const RopeFrequencies rope = ComputeRopeFrequencies(config.rope, config.head_dim);
  const at::Tensor half = positions.to(at::kFloat).unsqueeze(1) * rope.inverse_r;
  const at::Tensor angle = at::cat({half, half}, 1).unsqueeze(1);
  const at::Tensor cos = (at::cos(angle) * rope.attention_scale).to(x.scalar_type());
  const at::Tensor sin = (at::sin(angle) * rope.attention_scale).to(x.scalar_type());
  const auto parts = x.chunk(2, 2);
  return x * cos + at::cat({-parts[1], parts[0]}, 2) * sin;
}

// True where query (row) may see key (column).
inline at::Tensor VisibleTwin(const std::vector<int64_t>& cu_seqlens, int64_t window) {
  const int64_t tokens = cu_seqlens.back();
  at::Tensor visible = at::zeros({tokens, tokens}, at::kBool);
  auto v = visible.accessor<bool, 2>();
  for (size_t document = 0; document + 1 < cu_seqlens.size(); ++document) {
    for (int64_t i = cu_seqlens[document]; i < cu_seqlens[document + 1]; ++i) {
      for (int64_t j = cu_seqlens[document]; j <= i; ++j) {
        v[i][j] = window == 0 || j > i - window;
      }
    }
  }
  return visible;
}

inline at::Tensor AttentionTwin(const ModelConfig& c, int64_t layer, const AttentionParameters& w,
                                const at::Tensor& x_TH, const at::Tensor& positions_T,
                                const std::vector<int64_t>& cu_seqlens) {
  const int64_t tokens = x_TH.size(0);
  at::Tensor qkv = at::matmul(x_TH, w.qkv_weight_PH.t());
  if (c.attention_bias) qkv = qkv + w.qkv_bias_P;
  qkv = qkv.view({tokens, c.num_heads + 2 * c.num_kv_heads, c.head_dim});
  at::Tensor q = qkv.slice(1, 0, c.num_heads);
  at::Tensor k = qkv.slice(1, c.num_heads, c.num_heads + c.num_kv_heads);
  at::Tensor v = qkv.slice(1, c.num_heads + c.num_kv_heads);
  q = RopeTwin(c, RmsNormTwin(q, w.q_norm_d, c.rms_norm_eps), positions_T);
  k = RopeTwin(c, RmsNormTwin(k, w.k_norm_d, c.rms_norm_eps), positions_T);
  const int64_t repeats = c.num_heads / c.num_kv_heads;
  k = k.repeat_interleave(repeats, 1);
  v = v.repeat_interleave(repeats, 1);
  const at::Tensor scores_NTT = at::matmul(q.transpose(0, 1), k.permute({1, 2, 0})) /
                                std::sqrt(static_cast<double>(c.head_dim));
  const int64_t window = layer >= c.max_window_layers ? c.sliding_window : 0;
  const at::Tensor hidden = VisibleTwin(cu_seqlens, window).logical_not();
  const at::Tensor probs_NTT =
      at::softmax(scores_NTT.masked_fill(hidden, -std::numeric_limits<double>::infinity()), -1);
  const at::Tensor out_TQ = at::matmul(probs_NTT, v.transpose(0, 1))
                                .transpose(0, 1)
                                .reshape({tokens, c.num_heads * c.head_dim});
  const at::Tensor y_TH = at::matmul(out_TQ, w.o_weight_HQ.t());
  return c.attention_bias ? y_TH + w.o_bias_H : y_TH;
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_ATTENTION_TWIN_H_
