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

// The whole happens in Begin.
struct LocalDispatch final : PendingDispatch {
  DispatchedRows rows;
};

// The whole happens in Finish, where the residual is known.
struct LocalCombine final : PendingCombine {
  const ops::Permutation* permutation = nullptr;
  at::Tensor rows_NH, dweights_PN;
};

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

std::unique_ptr<PendingDispatch> LocalDispatcher::BeginDispatch(const DispatchPlan& plan,
                                                                const at::Tensor& x_TH,
                                                                const at::Tensor& weights_TK) {
  auto pending = std::make_unique<LocalDispatch>();
  ops::PermutedRows out = ops::PermuteRows(x_TH, weights_TK, PermutationOf(plan));
  pending->rows = {std::move(out.rows_NH), std::move(out.scalars_N)};
  return pending;
}

DispatchedRows LocalDispatcher::FinishDispatch(std::unique_ptr<PendingDispatch> pending) {
  return std::move(static_cast<LocalDispatch&>(*pending).rows);
}

std::unique_ptr<PendingCombine> LocalDispatcher::BeginCombine(const DispatchPlan& plan,
                                                              const at::Tensor& rows_NH,
                                                              const at::Tensor& dweights_PN) {
  auto pending = std::make_unique<LocalCombine>();
  pending->permutation = &PermutationOf(plan);
  pending->rows_NH = rows_NH;
  pending->dweights_PN = dweights_PN;
  return pending;
}

CombinedRows LocalDispatcher::FinishCombine(std::unique_ptr<PendingCombine> pending,
                                            const at::Tensor& residual_TH) {
  const auto& combine = static_cast<const LocalCombine&>(*pending);
  CombinedRows out;
  out.sum_TH =
      ops::UnpermuteSum(combine.rows_NH, residual_TH, *combine.permutation, combine.dweights_PN,
                        combine.dweights_PN.defined() ? &out.dweights_TK : nullptr);
  return out;
}

}  // namespace switchyard
