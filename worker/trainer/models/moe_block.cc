#include "worker/trainer/models/moe_block.h"

#include <ATen/ATen.h>

#include <utility>

#include "worker/trainer/models/router.h"
#include "worker/trainer/ops/experts.h"

namespace switchyard {
namespace {

at::Tensor DownGradients(const DispatchPlan& plan, const ExpertParameters& experts,
                         at::Tensor dy_NH, MoeSaved* saved, const MoeGradients& gradients,
                         at::Tensor* dweights_PN) {
  ops::ExpertsDownGradients down = ops::ExpertsDownBackward(dy_NH, saved->z_N2F, experts.down_EHF,
                                                            saved->weights_N, plan.offsets_E1);
  saved->z_N2F.reset();
  ops::ExpertsBackwardWeight(dy_NH, down.h_NF, plan.offsets_E1, gradients.experts.down_EHF,
                             gradients.accumulate_experts);
  *dweights_PN = std::move(down.dweights_PN);
  return std::move(down.dz_N2F);
}

}  // namespace

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
  const DispatchPlan& plan = *saved->plan;
  const DispatchedRows sent = context.dispatcher.Dispatch(plan, x_TH, {});
  saved->z_N2F =
      ops::ExpertsUpForward(sent.rows_NH, experts.gate_up_E2FH, saved->weights_N, plan.offsets_E1)
          .z_N2F;
}

at::Tensor MoeBackward(const BatchContext& context, const at::Tensor& router_EH,
                       const ExpertParameters& experts, const at::Tensor& dy_TH,
                       const at::Tensor& x_TH, const at::Tensor& daux_E, MoeSaved* saved,
                       const MoeGradients& gradients) {
  TokenDispatcher& dispatcher = context.dispatcher;
  const DispatchPlan& plan = *saved->plan;
  at::Tensor dweights_PN;
  at::Tensor dz_N2F = DownGradients(plan, experts, dispatcher.Dispatch(plan, dy_TH, {}).rows_NH,
                                    saved, gradients, &dweights_PN);
  // The rows are dispatched a second time instead of being kept from the forward.
  ops::ExpertsBackwardWeight(dz_N2F, dispatcher.Dispatch(plan, x_TH, {}).rows_NH, plan.offsets_E1,
                             gradients.experts.gate_up_E2FH, gradients.accumulate_experts);
  at::Tensor drows_NH = ops::ExpertsUpBackward(dz_N2F, experts.gate_up_E2FH, plan.offsets_E1);
  dz_N2F.reset();
  const CombinedRows combined = dispatcher.CombineGradients(plan, drows_NH, dweights_PN);
  RouterBackward(context, router_EH, combined.dweights_TK, daux_E, x_TH, saved->choice,
                 combined.sum_TH, gradients.router_EH, gradients.accumulate_router);
  return combined.sum_TH;
}

}  // namespace switchyard
