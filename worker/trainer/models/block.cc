#include "worker/trainer/models/block.h"

#include <ATen/ATen.h>

#include <memory>
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

  ops::RmsNormOutput normed = ops::RmsNormForward(x_TH, weights.input_norm_H, c.rms_norm_eps);
  at::Tensor middle_TH = AttentionForward(context, layer_, weights.attention, normed.y_RD,
                                          keep ? &saved->attention : nullptr);
  normed = ops::AddRmsNormForward(middle_TH, x_TH, weights.post_attention_norm_H, c.rms_norm_eps);
  at::Tensor y_TH;
  if (is_moe()) {
    const HeldBucket held(store_, buckets_.experts);
    y_TH = MoeForward(context, weights.router_EH,
                      ViewExperts(c, *buckets_.experts_layout, held.flat()), normed.y_RD, middle_TH,
                      saved != nullptr ? &saved->moe : nullptr, sums);
  } else {
    y_TH = MlpForward(weights.mlp, normed.y_RD, keep ? &saved->mlp : nullptr);
    y_TH.add_(middle_TH);
  }
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
  ops::RmsNormOutput normed =
      ops::RmsNormForward(saved->x_TH, weights.input_norm_H, c.rms_norm_eps);
  saved->middle_TH =
      AttentionForward(context, layer_, weights.attention, normed.y_RD, &saved->attention);
  normed = ops::AddRmsNormForward(saved->middle_TH, saved->x_TH, weights.post_attention_norm_H,
                                  c.rms_norm_eps);
  if (is_moe()) {
    MoeRecompute(context, experts, normed.y_RD, &saved->moe);
  } else {
    MlpRecompute(weights.mlp, normed.y_RD, &saved->mlp);
  }
}

at::Tensor Block::Backward(const BatchContext& context, const at::Tensor& dy_TH,
                           const at::Tensor& daux_E, BlockSaved saved,
                           DeferredGradients* deferred) const {
  const ModelConfig& c = context.config;
  const HeldBucket dense(store_, buckets_.dense);
  const LayerParameters weights = ViewLayer(c, *buckets_.dense_layout, dense.flat());
  const GradientBuffer dense_gradient = store_.Gradient(buckets_.dense);
  const LayerParameters gradients = ViewLayer(c, *buckets_.dense_layout, dense_gradient.flat);
  const bool accumulate = dense_gradient.accumulate;

  if (!is_moe()) deferred->Compute();
  at::Tensor dmiddle_TH;
  {
    std::optional<HeldBucket> held;
    ExpertParameters experts;
    MoeGradients moe_gradients;
    const auto begin_dispatch = [&] {
      return context.dispatcher.BeginDispatch(*saved.moe.plan, dy_TH, {});
    };
    std::unique_ptr<PendingDispatch> dy_arriving;
    if (is_moe()) {
      if (context.dispatcher.has_peers()) dy_arriving = begin_dispatch();
      held.emplace(store_, buckets_.experts);
      experts = ViewExperts(c, *buckets_.experts_layout, held->flat());
    }
    if (!saved.middle_TH.defined()) Recompute(context, weights, experts, &saved);
    if (is_moe()) {
      const GradientBuffer gradient = store_.Gradient(buckets_.experts);
      moe_gradients = {gradients.router_EH, accumulate,
                       ViewExperts(c, *buckets_.experts_layout, gradient.flat),
                       gradient.accumulate};
    }
    const ops::RmsNormOutput normed =
        ops::RmsNormForward(saved.middle_TH, weights.post_attention_norm_H, c.rms_norm_eps);
    // Without peers its rows are made at once: not before they are needed.
    if (is_moe() && dy_arriving == nullptr) dy_arriving = begin_dispatch();
    const at::Tensor dnormed_TH =
        is_moe()
            ? MoeBackward(context, weights.router_EH, experts, normed.y_RD, daux_E, &saved.moe,
                          moe_gradients, std::move(dy_arriving), deferred)
            : MlpBackward(weights.mlp, dy_TH, normed.y_RD, saved.mlp, gradients.mlp, accumulate);
    dmiddle_TH = ops::RmsNormBackward(dnormed_TH, saved.middle_TH, normed.inverse_rms_R,
                                      weights.post_attention_norm_H, c.rms_norm_eps, dy_TH,
                                      gradients.post_attention_norm_H, accumulate);
  }
  if (is_moe()) store_.GradientDone(buckets_.experts);
  saved.middle_TH.reset();

  const ops::RmsNormOutput normed =
      ops::RmsNormForward(saved.x_TH, weights.input_norm_H, c.rms_norm_eps);
  const at::Tensor dnormed_TH = AttentionBackward(
      context, layer_, weights.attention, dmiddle_TH, normed.y_RD, saved.attention,
      gradients.attention, accumulate, context.dispatcher.has_peers() ? deferred : nullptr);
  const at::Tensor dx_TH =
      ops::RmsNormBackward(dnormed_TH, saved.x_TH, normed.inverse_rms_R, weights.input_norm_H,
                           c.rms_norm_eps, dmiddle_TH, gradients.input_norm_H, accumulate);
  const auto done = [this] { store_.GradientDone(buckets_.dense); };
  context.dispatcher.has_peers() ? deferred->Add(done) : done();
  return dx_TH;
}

}  // namespace switchyard
