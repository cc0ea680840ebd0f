#include "worker/trainer/models/moe_block.h"

#include <ATen/ATen.h>

#include <utility>

#include "worker/trainer/models/router.h"
#include "worker/trainer/ops/experts.h"
#include "worker/trainer/ops/spare_sms.h"

namespace switchyard {

at::Tensor MoeForward(const BatchContext& context, const at::Tensor& router_EH,
                      const ExpertParameters& experts, const at::Tensor& x_TH,
                      const at::Tensor& residual_TH, MoeSaved* saved, RoutingSums* sums) {
  MoeSaved local;
  MoeSaved& now = saved != nullptr ? *saved : local;
  now.choice = RouterForward(context, router_EH, x_TH);
  now.plan = context.dispatcher.Plan(now.choice.by_expert);
  if (sums != nullptr) *sums = {now.choice.by_expert.offsets_E1, now.choice.prob_sums_E};
  const DispatchPlan& plan = *now.plan;
  DispatchedRows sent = context.dispatcher.Dispatch(plan, x_TH, now.choice.weights_TK);
  now.choice.weights_TK.reset();
  now.weights_N = std::move(sent.weights_N);
  ops::ExpertsUp up =
      ops::ExpertsUpForward(sent.rows_NH, experts.gate_up_E2FH, now.weights_N, plan.offsets_E1);
  sent.rows_NH.reset();
  now.z_N2F = std::move(up.z_N2F);
  const at::Tensor y_NH = ops::ExpertsDownForward(up.h_NF, experts.down_EHF, plan.offsets_E1);
  up.h_NF.reset();
  return context.dispatcher.Combine(plan, y_NH, residual_TH);
}

void MoeRecompute(const BatchContext& context, const ExpertParameters& experts,
                  const at::Tensor& x_TH, MoeSaved* saved) {
  if (context.dispatcher.has_peers()) return;  // the backward has the rows anyway
  const DispatchPlan& plan = *saved->plan;
  const DispatchedRows sent = context.dispatcher.Dispatch(plan, x_TH, {});
  saved->z_N2F =
      ops::ExpertsUpForward(sent.rows_NH, experts.gate_up_E2FH, saved->weights_N, plan.offsets_E1)
          .z_N2F;
}

// With peers a layer's four transfers fly while products run that do not need them
// (docs/overlap.md):
//     dy, x on their way | attention again (full recompute); weight gradients of the layer after
//     x on its way       | gradients of h, z and the rows (full recompute: none, z needs it)
//     the rows' gradient | weight gradients of this layer's experts
// Without peers each product follows the one that it shares an operand with: least memory.
at::Tensor MoeBackward(const BatchContext& context, const at::Tensor& router_EH,
                       const ExpertParameters& experts, const at::Tensor& x_TH,
                       const at::Tensor& daux_E, MoeSaved* saved, const MoeGradients& gradients,
                       std::unique_ptr<PendingDispatch> dy_arriving, DeferredGradients* meanwhile) {
  TokenDispatcher& dispatcher = context.dispatcher;
  const bool overlap = dispatcher.has_peers();
  const ops::SpareSms spare(dispatcher.sms_in_flight());
  const DispatchPlan& plan = *saved->plan;
  // The rows are dispatched a second time instead of being kept from the forward.
  std::unique_ptr<PendingDispatch> x_arriving;
  if (overlap) x_arriving = dispatcher.BeginDispatch(plan, x_TH, {});
  if (meanwhile != nullptr) meanwhile->Compute();

  at::Tensor dy_NH = dispatcher.FinishDispatch(std::move(dy_arriving)).rows_NH;
  at::Tensor x_NH;
  if (overlap && !saved->z_N2F.defined()) {
    x_NH = dispatcher.FinishDispatch(std::move(x_arriving)).rows_NH;
    saved->z_N2F =
        ops::ExpertsUpForward(x_NH, experts.gate_up_E2FH, saved->weights_N, plan.offsets_E1).z_N2F;
  }
  ops::ExpertsDownGradients down = ops::ExpertsDownBackward(dy_NH, saved->z_N2F, experts.down_EHF,
                                                            saved->weights_N, plan.offsets_E1);
  saved->z_N2F.reset();
  const auto weight_gradients = [&] {
    ops::ExpertsBackwardWeight(dy_NH, down.h_NF, plan.offsets_E1, gradients.experts.down_EHF,
                               gradients.accumulate_experts);
    dy_NH.reset();
    down.h_NF.reset();
    if (!overlap) x_arriving = dispatcher.BeginDispatch(plan, x_TH, {});
    if (!x_NH.defined()) x_NH = dispatcher.FinishDispatch(std::move(x_arriving)).rows_NH;
    ops::ExpertsBackwardWeight(down.dz_N2F, x_NH, plan.offsets_E1, gradients.experts.gate_up_E2FH,
                               gradients.accumulate_experts);
    x_NH.reset();
  };
  if (!overlap) weight_gradients();
  at::Tensor drows_NH = ops::ExpertsUpBackward(down.dz_N2F, experts.gate_up_E2FH, plan.offsets_E1);
  std::unique_ptr<PendingCombine> returning =
      dispatcher.BeginCombine(plan, drows_NH, down.dweights_PN);
  drows_NH.reset();
  if (overlap) weight_gradients();
  down.dz_N2F.reset();
  const CombinedRows combined = dispatcher.FinishCombine(std::move(returning), {});
  RouterBackward(context, router_EH, combined.dweights_TK, daux_E, x_TH, saved->choice,
                 combined.sum_TH, gradients.router_EH, gradients.accumulate_router);
  return combined.sum_TH;
}

}  // namespace switchyard
