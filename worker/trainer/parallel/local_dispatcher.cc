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

std::unique_ptr<DispatchPlan> LocalDispatcher::Plan(const at::Tensor& ids_TK) {
  auto plan = std::make_unique<LocalPlan>();
  plan->permutation = ops::MakePermutation(ids_TK, num_experts_);
  plan->num_tokens = ids_TK.size(0);
  plan->num_rows = ids_TK.numel();
  plan->rows_per_expert = plan->permutation.rows_per_expert;
  return plan;
}

at::Tensor LocalDispatcher::Dispatch(const DispatchPlan& plan, const at::Tensor& x_TH) {
  return ops::PermuteRows(x_TH, PermutationOf(plan));
}

at::Tensor LocalDispatcher::Combine(const DispatchPlan& plan, const at::Tensor& rows_NH) {
  return ops::UnpermuteSum(rows_NH, PermutationOf(plan));
}

at::Tensor LocalDispatcher::DispatchScalars(const DispatchPlan& plan, const at::Tensor& s_TK) {
  return s_TK.reshape({-1}).index_select(0, PermutationOf(plan).copy_of_row_N);
}

at::Tensor LocalDispatcher::ReturnScalars(const DispatchPlan& plan, const at::Tensor& s_N) {
  return s_N.index_select(0, PermutationOf(plan).row_of_copy_N)
      .view({plan.num_tokens, PermutationOf(plan).top_k});
}

}  // namespace switchyard
