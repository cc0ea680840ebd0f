#include "worker/trainer/parallel/local_dispatcher.h"

#include <ATen/ATen.h>

#include "worker/trainer/ops/permute.h"

namespace switchyard {
namespace {

struct LocalPlan final : DispatchPlan {
  ops::Permutation permutation;
};

const ops::Permutation& PermutationOf(const DispatchPlan& plan) {
  return static_cast<const LocalPlan&>(plan).permutation;
}

}  // namespace

std::unique_ptr<DispatchPlan> LocalDispatcher::Plan(const ops::Permutation& by_expert) {
  TORCH_CHECK(by_expert.offsets_E1.numel() == num_experts_ + 1, "dispatcher: ", num_experts_,
              " experts, routed to ", by_expert.offsets_E1.numel() - 1);
  auto plan = std::make_unique<LocalPlan>();
  plan->permutation = by_expert;
  plan->num_tokens = by_expert.num_tokens;
  plan->num_rows = by_expert.num_tokens * by_expert.top_k;
  plan->offsets_E1 = by_expert.offsets_E1;
  return plan;
}

DispatchedRows LocalDispatcher::Dispatch(const DispatchPlan& plan, const at::Tensor& x_TH,
                                         const at::Tensor& weights_TK) {
  ops::PermutedRows out = ops::PermuteRows(x_TH, weights_TK, PermutationOf(plan));
  return {std::move(out.rows_NH), std::move(out.scalars_N)};
}

at::Tensor LocalDispatcher::Combine(const DispatchPlan& plan, const at::Tensor& rows_NH,
                                    const at::Tensor& residual_TH) {
  return ops::UnpermuteSum(rows_NH, residual_TH, PermutationOf(plan));
}

CombinedGradients LocalDispatcher::CombineGradients(const DispatchPlan& plan,
                                                    const at::Tensor& drows_NH,
                                                    const at::Tensor& dweights_PN) {
  CombinedGradients out;
  out.dx_TH = ops::UnpermuteSum(drows_NH, {}, PermutationOf(plan), dweights_PN, &out.dweights_TK);
  return out;
}

}  // namespace switchyard
