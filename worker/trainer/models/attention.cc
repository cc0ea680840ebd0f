#include "worker/trainer/models/attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/rms_norm.h"

namespace switchyard {
namespace {

// Views of [T, P].
struct Heads {
  at::Tensor q_TNd;
  at::Tensor k_TMd;
  at::Tensor v_TMd;
};

Heads Split(const ModelConfig& c, const at::Tensor& qkv_TP) {
  const int64_t tokens = qkv_TP.size(0);
  const int64_t q = c.num_heads * c.head_dim;
  const int64_t kv = c.num_kv_heads * c.head_dim;
  return {qkv_TP.narrow(1, 0, q).view({tokens, c.num_heads, c.head_dim}),
          qkv_TP.narrow(1, q, kv).view({tokens, c.num_kv_heads, c.head_dim}),
          qkv_TP.narrow(1, q + kv, kv).view({tokens, c.num_kv_heads, c.head_dim})};
}

Heads NormAndRotate(const BatchContext& context, const AttentionParameters& weights,
                    const Heads& raw) {
  const double eps = context.config.rms_norm_eps;
  return {ops::RopeForward(ops::RmsNormForward(raw.q_TNd, weights.q_norm_d, eps), context.rope),
          ops::RopeForward(ops::RmsNormForward(raw.k_TMd, weights.k_norm_d, eps), context.rope),
          raw.v_TMd};
}

double Scale(const ModelConfig& c) { return 1.0 / std::sqrt(static_cast<double>(c.head_dim)); }

int64_t Window(const ModelConfig& c, int64_t layer) {
  return layer >= c.max_window_layers ? c.sliding_window : 0;
}

// The projected input and the attention over it.
AttentionSaved Core(const BatchContext& context, int64_t layer, const AttentionParameters& weights,
                    const at::Tensor& x_TH) {
  const ModelConfig& c = context.config;
  AttentionSaved out;
  out.qkv_TP = ops::LinearForward(x_TH, weights.qkv_weight_PH, weights.qkv_bias_P);
  const Heads heads = NormAndRotate(context, weights, Split(c, out.qkv_TP));
  out.core = ops::AttentionForward(heads.q_TNd, heads.k_TMd, heads.v_TMd, context.attention,
                                   Scale(c), Window(c, layer));
  return out;
}

}  // namespace

at::Tensor AttentionForward(const BatchContext& context, int64_t layer,
                            const AttentionParameters& weights, const at::Tensor& x_TH,
                            AttentionSaved* saved) {
  AttentionSaved now = Core(context, layer, weights, x_TH);
  const at::Tensor out_TQ = now.core.out_TNd.view({x_TH.size(0), weights.o_weight_HQ.size(1)});
  if (saved != nullptr) *saved = std::move(now);
  return ops::LinearForward(out_TQ, weights.o_weight_HQ, weights.o_bias_H);
}

void AttentionRecompute(const BatchContext& context, int64_t layer,
                        const AttentionParameters& weights, const at::Tensor& x_TH,
                        AttentionSaved* saved) {
  *saved = Core(context, layer, weights, x_TH);
}

at::Tensor AttentionBackward(const BatchContext& context, int64_t layer,
                             const AttentionParameters& weights, const at::Tensor& dy_TH,
                             const at::Tensor& x_TH, const AttentionSaved& saved,
                             const AttentionParameters& gradients) {
  const ModelConfig& c = context.config;
  const int64_t tokens = x_TH.size(0);
  const at::Tensor out_TQ = saved.core.out_TNd.view({tokens, weights.o_weight_HQ.size(1)});
  const at::Tensor dout_TNd =
      ops::LinearBackwardInput(dy_TH, weights.o_weight_HQ).view({tokens, c.num_heads, c.head_dim});
  ops::LinearBackwardWeight(dy_TH, out_TQ, gradients.o_weight_HQ);
  ops::LinearBackwardBias(dy_TH, gradients.o_bias_H);

  const Heads raw = Split(c, saved.qkv_TP);
  const Heads heads = NormAndRotate(context, weights, raw);
  const ops::AttentionGradients core =
      ops::AttentionBackward(dout_TNd, heads.q_TNd, heads.k_TMd, heads.v_TMd, saved.core,
                             context.attention, Scale(c), Window(c, layer));
  at::Tensor dqkv_TP = at::empty(saved.qkv_TP.sizes(), saved.qkv_TP.options());
  const Heads d = Split(c, dqkv_TP);
  d.q_TNd.copy_(ops::RmsNormBackward(ops::RopeBackward(core.dq_TNd, context.rope), raw.q_TNd,
                                     weights.q_norm_d, c.rms_norm_eps, gradients.q_norm_d));
  d.k_TMd.copy_(ops::RmsNormBackward(ops::RopeBackward(core.dk_TMd, context.rope), raw.k_TMd,
                                     weights.k_norm_d, c.rms_norm_eps, gradients.k_norm_d));
  d.v_TMd.copy_(core.dv_TMd);
  ops::LinearBackwardWeight(dqkv_TP, x_TH, gradients.qkv_weight_PH);
  ops::LinearBackwardBias(dqkv_TP, gradients.qkv_bias_P);
  return ops::LinearBackwardInput(dqkv_TP, weights.qkv_weight_PH);
}

}  // namespace switchyard
