#include "worker/trainer/models/moe_block.h"

#include <ATen/ATen.h>

#include <utility>

#include "worker/trainer/models/experts.h"
#include "worker/trainer/models/router.h"

namespace switchyard {
namespace {

// Gate and up of the rows that this rank received, and their routing weights.
void Compute(const BatchContext& context, const ExpertParameters& experts, const at::Tensor& x_TH,
             MoeSaved* saved) {
  const DispatchPlan& plan = *saved->plan;
  const at::Tensor rows_NH = context.dispatcher.Dispatch(plan, x_TH);
  saved->weights_N = context.dispatcher.DispatchScalars(plan, saved->choice.weights_TK);
  saved->z_N2F = ExpertsGateUp(experts, rows_NH, plan.rows_per_expert);
}

}  // namespace

void MoeSaved::KeepDecisionOnly() {
  choice = {};
  weights_N.reset();
  z_N2F.reset();
}

at::Tensor MoeForward(const BatchContext& context, const at::Tensor& router_EH,
                      const ExpertParameters& experts, const at::Tensor& x_TH, MoeSaved* saved,
                      RoutingSums* sums) {
  MoeSaved local;
  MoeSaved& now = saved != nullptr ? *saved : local;
  now.choice = RouterForward(context, router_EH, x_TH);
  now.ids_TK = now.choice.ids_TK;
  if (sums != nullptr) {
    sums->copies_E = at::bincount(now.ids_TK.reshape({-1}), {}, router_EH.size(0));
    sums->prob_sums_E = now.choice.probs_TE.sum(0, /*keepdim=*/false, at::kDouble);
  }
  now.plan = context.dispatcher.Plan(now.ids_TK);
  Compute(context, experts, x_TH, &now);
  return context.dispatcher.Combine(
      *now.plan, ExpertsDown(experts, now.z_N2F, now.weights_N, now.plan->rows_per_expert));
}

void MoeRecompute(const BatchContext& context, const at::Tensor& router_EH,
                  const ExpertParameters& experts, const at::Tensor& x_TH, MoeSaved* saved) {
  saved->choice = RouterReplay(context, router_EH, x_TH, saved->ids_TK);
  Compute(context, experts, x_TH, saved);
}

at::Tensor MoeBackward(const BatchContext& context, const at::Tensor& router_EH,
                       const ExpertParameters& experts, const at::Tensor& dy_TH,
                       const at::Tensor& x_TH, const at::Tensor& daux_E, MoeSaved* saved,
                       at::Tensor drouter_EH, const ExpertParameters& dexperts) {
  TokenDispatcher& dispatcher = context.dispatcher;
  const DispatchPlan& plan = *saved->plan;
  // Each rank's rows are dispatched a second time instead of being kept from the forward.
  const ExpertsGradients experts_gradients = ExpertsBackward(
      experts, dispatcher.Dispatch(plan, dy_TH), [&] { return dispatcher.Dispatch(plan, x_TH); },
      std::move(saved->z_N2F), saved->weights_N, plan.rows_per_expert, dexperts);
  at::Tensor dx_TH = dispatcher.Combine(plan, experts_gradients.drows_NH);
  const at::Tensor dweights_TK = dispatcher.ReturnScalars(plan, experts_gradients.dweights_N);
  dx_TH.add_(
      RouterBackward(context, router_EH, dweights_TK, daux_E, x_TH, saved->choice, drouter_EH));
  return dx_TH;
}

}  // namespace switchyard
