#include "worker/trainer/models/block.h"

#include <ATen/ATen.h>

#include <optional>
#include <utility>

#include "worker/trainer/models/held_bucket.h"
#include "worker/trainer/ops/rms_norm.h"

namespace switchyard {
Block::Block(int64_t layer, const BlockBuckets& buckets, ParameterStore& store)
    : layer_(layer), buckets_(buckets), store_(store) {}

void Block::Prefetch() const {
  store_.Prefetch(buckets_.dense);
  if (is_moe()) store_.Prefetch(buckets_.experts);
}

at::Tensor Block::Forward(const BatchContext& context, const at::Tensor& x_TH, bool recompute,
                          BlockSaved* saved, RoutingSums* sums) const {
  const ModelConfig& c = context.config;
  const bool keep = saved != nullptr && !recompute;
  const HeldBucket dense(store_, buckets_.dense);
  const LayerParameters weights = ViewLayer(c, *buckets_.dense_layout, dense.flat());

  at::Tensor middle_TH =
      AttentionForward(context, layer_, weights.attention,
                       ops::RmsNormForward(x_TH, weights.input_norm_H, c.rms_norm_eps),
                       keep ? &saved->attention : nullptr);
  middle_TH.add_(x_TH);
  const at::Tensor normed_TH =
      ops::RmsNormForward(middle_TH, weights.post_attention_norm_H, c.rms_norm_eps);
  at::Tensor y_TH;
  if (is_moe()) {
    const HeldBucket held(store_, buckets_.experts);
    y_TH = MoeForward(context, weights.router_EH,
                      ViewExperts(c, *buckets_.experts_layout, held.flat()), normed_TH,
                      saved != nullptr ? &saved->moe : nullptr, sums);
  } else {
    y_TH = MlpForward(weights.mlp, normed_TH, keep ? &saved->mlp : nullptr);
  }
  y_TH.add_(middle_TH);
  if (saved != nullptr) {
    saved->x_TH = x_TH;
    if (keep) {
      saved->middle_TH = middle_TH;
    } else {
      saved->moe.KeepDecisionOnly();
    }
  }
  return y_TH;
}

void Block::Recompute(const BatchContext& context, const LayerParameters& weights,
                      const ExpertParameters& experts, BlockSaved* saved) const {
  const ModelConfig& c = context.config;
  saved->middle_TH = AttentionForward(
      context, layer_, weights.attention,
      ops::RmsNormForward(saved->x_TH, weights.input_norm_H, c.rms_norm_eps), &saved->attention);
  saved->middle_TH.add_(saved->x_TH);
  const at::Tensor normed_TH =
      ops::RmsNormForward(saved->middle_TH, weights.post_attention_norm_H, c.rms_norm_eps);
  if (is_moe()) {
    MoeRecompute(context, weights.router_EH, experts, normed_TH, &saved->moe);
  } else {
    MlpRecompute(weights.mlp, normed_TH, &saved->mlp);
  }
}

at::Tensor Block::Backward(const BatchContext& context, const at::Tensor& dy_TH,
                           const at::Tensor& daux_E, BlockSaved saved) const {
  const ModelConfig& c = context.config;
  const HeldBucket dense(store_, buckets_.dense);
  const LayerParameters weights = ViewLayer(c, *buckets_.dense_layout, dense.flat());
  const LayerParameters gradients =
      ViewLayer(c, *buckets_.dense_layout, GradientToAddTo(store_, buckets_.dense));

  at::Tensor dmiddle_TH;
  {
    std::optional<HeldBucket> held;
    ExpertParameters experts, dexperts;
    if (is_moe()) {
      held.emplace(store_, buckets_.experts);
      experts = ViewExperts(c, *buckets_.experts_layout, held->flat());
      dexperts =
          ViewExperts(c, *buckets_.experts_layout, GradientToAddTo(store_, buckets_.experts));
    }
    if (!saved.middle_TH.defined()) Recompute(context, weights, experts, &saved);
    const at::Tensor normed_TH =
        ops::RmsNormForward(saved.middle_TH, weights.post_attention_norm_H, c.rms_norm_eps);
    const at::Tensor dnormed_TH =
        is_moe() ? MoeBackward(context, weights.router_EH, experts, dy_TH, normed_TH, daux_E,
                               &saved.moe, gradients.router_EH, dexperts)
                 : MlpBackward(weights.mlp, dy_TH, normed_TH, saved.mlp, gradients.mlp);
    dmiddle_TH = ops::RmsNormBackward(dnormed_TH, saved.middle_TH, weights.post_attention_norm_H,
                                      c.rms_norm_eps, gradients.post_attention_norm_H);
  }
  if (is_moe()) store_.GradientDone(buckets_.experts);
  saved.middle_TH.reset();
  dmiddle_TH.add_(dy_TH);

  const at::Tensor dnormed_TH =
      AttentionBackward(context, layer_, weights.attention, dmiddle_TH,
                        ops::RmsNormForward(saved.x_TH, weights.input_norm_H, c.rms_norm_eps),
                        saved.attention, gradients.attention);
  at::Tensor dx_TH = ops::RmsNormBackward(dnormed_TH, saved.x_TH, weights.input_norm_H,
                                          c.rms_norm_eps, gradients.input_norm_H);
  dx_TH.add_(dmiddle_TH);
  store_.GradientDone(buckets_.dense);
  return dx_TH;
}

}  // namespace switchyard
