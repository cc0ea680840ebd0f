#include "worker/trainer/models/attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/rope.h"

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

ops::QueriesAndKeys QueriesAndKeysOf(const Heads& heads) { return {heads.q_TNd, heads.k_TMd}; }

ops::QkNorm NormOf(const ModelConfig& c, const AttentionParameters& parameters) {
  return {parameters.q_norm_d, parameters.k_norm_d, c.rms_norm_eps};
}

ops::QueriesAndKeys NormAndRotate(const BatchContext& context, const AttentionParameters& weights,
                                  const Heads& raw) {
  return ops::QkNormRopeForward(QueriesAndKeysOf(raw), NormOf(context.config, weights),
                                context.rope);
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
  const Heads raw = Split(c, out.qkv_TP);
  const ops::QueriesAndKeys rotated = NormAndRotate(context, weights, raw);
  out.core = ops::AttentionForward(rotated.q_TNd, rotated.k_TMd, raw.v_TMd, context.attention,
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
                             const AttentionParameters& gradients, bool accumulate,
                             DeferredGradients* later) {
  const auto now_or_later = [later](const auto& compute) {
    later != nullptr ? later->Add(compute) : compute();
  };
  const ModelConfig& c = context.config;
  const int64_t tokens = x_TH.size(0);
  const at::Tensor out_TQ = saved.core.out_TNd.view({tokens, weights.o_weight_HQ.size(1)});
  const at::Tensor dout_TNd =
      ops::LinearBackwardInput(dy_TH, weights.o_weight_HQ).view({tokens, c.num_heads, c.head_dim});
  now_or_later([=] {
    ops::LinearBackwardWeight(dy_TH, out_TQ, gradients.o_weight_HQ, accumulate);
    ops::LinearBackwardBias(dy_TH, gradients.o_bias_H, accumulate);
  });

  const Heads raw = Split(c, saved.qkv_TP);
  at::Tensor dqkv_TP = at::empty(saved.qkv_TP.sizes(), saved.qkv_TP.options());
  const Heads draw = Split(c, dqkv_TP);
  const ops::QueriesAndKeys rotated = NormAndRotate(context, weights, raw);
  ops::AttentionGradients into;
  into.dv_TMd = draw.v_TMd;
  const ops::AttentionGradients core =
      ops::AttentionBackward(dout_TNd, rotated.q_TNd, rotated.k_TMd, raw.v_TMd, saved.core,
                             context.attention, Scale(c), Window(c, layer), into);
  ops::QkNormRopeBackward({core.dq_TNd, core.dk_TMd}, QueriesAndKeysOf(raw), NormOf(c, weights),
                          context.rope, QueriesAndKeysOf(draw), NormOf(c, gradients), accumulate);
  now_or_later([=] {
    ops::LinearBackwardWeight(dqkv_TP, x_TH, gradients.qkv_weight_PH, accumulate);
    ops::LinearBackwardBias(dqkv_TP, gradients.qkv_bias_P, accumulate);
  });
  return ops::LinearBackwardInput(dqkv_TP, weights.qkv_weight_PH);
}

}  // namespace switchyard
