// T tokens, K experts per token, C = T K copies sent, N rows received, H hidden, E experts, R
// ranks.
#include "worker/trainer/parallel/collective_dispatcher.h"

#include <ATen/ATen.h>

#include <vector>

namespace switchyard {
namespace {

struct CollectivePlan final : DispatchPlan {
  int64_t top_k = 0;
  at::Tensor copy_of_C;  // int64: the i-th row sent is copy copy_of_C[i]; by expert, token, k
  at::Tensor sent_at_C;  // its inverse
  at::Tensor arrival_N;  // int64: row n arrived at arrival_N[n]; arrival is by source rank, expert
  at::Tensor row_of_N;   // its inverse
  std::vector<int64_t> send_rows;  // [R]
  std::vector<int64_t> recv_rows;  // [R]
};

at::Tensor Inverse(const at::Tensor& permutation) {
  at::Tensor inverse = at::empty_like(permutation);
  return inverse.index_copy_(0, permutation, at::arange(permutation.numel(), inverse.options()));
}

std::vector<int64_t> WithRows(const at::Tensor& like, int64_t rows) {
  std::vector<int64_t> sizes = like.sizes().vec();
  sizes[0] = rows;
  return sizes;
}

// Copies in plan order -> rows of this rank's experts.
at::Tensor Send(Comm& ep, const CollectivePlan& plan, const at::Tensor& sent) {
  at::Tensor arrived = at::empty(WithRows(sent, plan.num_rows), sent.options());
  ep.AllToAll(arrived, sent, plan.recv_rows, plan.send_rows);
  return arrived.index_select(0, plan.arrival_N);
}

// The way back: rows -> copies ordered by token, then k.
at::Tensor Return(Comm& ep, const CollectivePlan& plan, const at::Tensor& rows) {
  const at::Tensor back = rows.index_select(0, plan.row_of_N);
  at::Tensor sent = at::empty(WithRows(rows, plan.copy_of_C.numel()), rows.options());
  ep.AllToAll(sent, back, plan.send_rows, plan.recv_rows);
  return sent.index_select(0, plan.sent_at_C);
}

const CollectivePlan& Cast(const DispatchPlan& plan) {
  return static_cast<const CollectivePlan&>(plan);
}

}  // namespace

CollectiveDispatcher::CollectiveDispatcher(Comm& ep, int64_t num_experts)
    : ep_(ep), num_experts_(num_experts) {
  TORCH_CHECK(num_experts % ep.size() == 0, "dispatcher: ", ep.size(), " ranks do not divide ",
              num_experts, " experts");
}

std::unique_ptr<DispatchPlan> CollectiveDispatcher::Plan(const at::Tensor& ids_TK) {
  TORCH_CHECK(ids_TK.dim() == 2 && ids_TK.scalar_type() == at::kLong,
              "dispatcher: ids must be int64 [tokens, top_k], got ", ids_TK.scalar_type(), " ",
              ids_TK.sizes());
  auto plan = std::make_unique<CollectivePlan>();
  plan->num_tokens = ids_TK.size(0);
  plan->top_k = ids_TK.size(1);
  const at::Tensor ids_C = ids_TK.reshape({-1});
  TORCH_CHECK(ids_C.numel() == 0 ||
                  (ids_C.min().item<int64_t>() >= 0 && ids_C.max().item<int64_t>() < num_experts_),
              "dispatcher: an expert id is negative or not below ", num_experts_);
  plan->copy_of_C = at::argsort(ids_C, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  plan->sent_at_C = Inverse(plan->copy_of_C);

  const int64_t ranks = ep_.size();
  const int64_t local = num_local_experts();
  const at::Tensor send_RE = at::bincount(ids_C, {}, num_experts_).view({ranks, local});
  at::Tensor recv_RE = at::empty_like(send_RE);
  const std::vector<int64_t> one_row(ranks, 1);
  ep_.AllToAll(recv_RE, send_RE.contiguous(), one_row, one_row);

  const at::Tensor send_host = send_RE.cpu(), recv_host = recv_RE.cpu();
  const auto send = send_host.accessor<int64_t, 2>(), recv = recv_host.accessor<int64_t, 2>();
  std::vector<int64_t> block_start(ranks * local);  // in arrival order: by rank, then expert
  int64_t arrived = 0;
  plan->rows_per_expert.assign(local, 0);
  for (int64_t r = 0; r < ranks; ++r) {
    int64_t send_rows = 0, recv_rows = 0;
    for (int64_t e = 0; e < local; ++e) {
      send_rows += send[r][e];
      block_start[r * local + e] = arrived + recv_rows;
      recv_rows += recv[r][e];
      plan->rows_per_expert[e] += recv[r][e];
    }
    arrived += recv_rows;
    plan->send_rows.push_back(send_rows);
    plan->recv_rows.push_back(recv_rows);
  }
  plan->num_rows = arrived;
  at::Tensor arrival = at::empty({arrived}, at::kLong);
  int64_t* out = arrival.mutable_data_ptr<int64_t>();
  for (int64_t e = 0; e < local; ++e) {
    for (int64_t r = 0; r < ranks; ++r) {
      for (int64_t i = 0; i < recv[r][e]; ++i) *out++ = block_start[r * local + e] + i;
    }
  }
  plan->arrival_N = arrival.to(ids_TK.device());
  plan->row_of_N = Inverse(plan->arrival_N);
  return plan;
}

at::Tensor CollectiveDispatcher::Dispatch(const DispatchPlan& base, const at::Tensor& x_TH) {
  const CollectivePlan& plan = Cast(base);
  TORCH_CHECK(x_TH.dim() == 2 && x_TH.size(0) == plan.num_tokens, "dispatch: x must be [",
              plan.num_tokens, ", hidden], got ", x_TH.sizes());
  return Send(ep_, plan,
              x_TH.index_select(0, at::div(plan.copy_of_C, plan.top_k, /*rounding_mode=*/"floor")));
}

at::Tensor CollectiveDispatcher::Combine(const DispatchPlan& base, const at::Tensor& rows_NH) {
  const CollectivePlan& plan = Cast(base);
  TORCH_CHECK(rows_NH.dim() == 2 && rows_NH.size(0) == plan.num_rows, "combine: rows must be [",
              plan.num_rows, ", hidden], got ", rows_NH.sizes());
  const at::Tensor copies_TKH =
      Return(ep_, plan, rows_NH).view({plan.num_tokens, plan.top_k, rows_NH.size(1)});
  // Copy by copy: the order of additions is part of the contract.
  const at::ScalarType sum_type = rows_NH.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor sum_TH = copies_TKH.select(1, 0).to(sum_type, /*non_blocking=*/false, /*copy=*/true);
  for (int64_t k = 1; k < plan.top_k; ++k) sum_TH.add_(copies_TKH.select(1, k));
  return sum_TH.to(rows_NH.scalar_type());
}

at::Tensor CollectiveDispatcher::DispatchScalars(const DispatchPlan& base, const at::Tensor& s_TK) {
  const CollectivePlan& plan = Cast(base);
  TORCH_CHECK(s_TK.dim() == 2 && s_TK.numel() == plan.copy_of_C.numel(),
              "dispatch scalars: must be [", plan.num_tokens, ", ", plan.top_k, "], got ",
              s_TK.sizes());
  return Send(ep_, plan, s_TK.reshape({-1}).index_select(0, plan.copy_of_C));
}

at::Tensor CollectiveDispatcher::ReturnScalars(const DispatchPlan& base, const at::Tensor& s_N) {
  const CollectivePlan& plan = Cast(base);
  TORCH_CHECK(s_N.dim() == 1 && s_N.size(0) == plan.num_rows, "return scalars: must be [",
              plan.num_rows, "], got ", s_N.sizes());
  return Return(ep_, plan, s_N).view({plan.num_tokens, plan.top_k});
}

}  // namespace switchyard
