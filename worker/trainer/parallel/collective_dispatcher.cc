// T tokens, K experts per token, N rows received, H hidden, E experts, R ranks.
#include "worker/trainer/parallel/collective_dispatcher.h"

#include <ATen/ATen.h>

#include <vector>

#include "worker/trainer/ops/permute.h"

namespace switchyard {
namespace {

struct CollectivePlan final : DispatchPlan {
  ops::Permutation sent;  // copies to the rows sent: by global expert, so by rank
  at::Tensor arrival_N;   // int64: row n arrived at arrival_N[n]; arrival is by source rank, expert
  at::Tensor row_of_N;    // its inverse
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

// Rows sent -> rows of this rank's experts.
at::Tensor Send(Comm& ep, const CollectivePlan& plan, const at::Tensor& sent) {
  at::Tensor arrived = at::empty(WithRows(sent, plan.num_rows), sent.options());
  ep.AllToAll(arrived, sent, plan.recv_rows, plan.send_rows);
  return arrived.index_select(0, plan.arrival_N);
}

// The way back: rows -> rows sent.
at::Tensor Return(Comm& ep, const CollectivePlan& plan, const at::Tensor& rows) {
  const at::Tensor back = rows.index_select(0, plan.row_of_N);
  at::Tensor sent = at::empty(WithRows(rows, plan.sent.row_of_TK.numel()), rows.options());
  ep.AllToAll(sent, back, plan.send_rows, plan.recv_rows);
  return sent;
}

const CollectivePlan& Cast(const DispatchPlan& plan) {
  return static_cast<const CollectivePlan&>(plan);
}

void CheckRows(const CollectivePlan& plan, const at::Tensor& rows_NH) {
  TORCH_CHECK(rows_NH.dim() == 2 && rows_NH.size(0) == plan.num_rows, "combine: rows must be [",
              plan.num_rows, ", hidden], got ", rows_NH.sizes());
}

}  // namespace

CollectiveDispatcher::CollectiveDispatcher(Comm& ep, int64_t num_experts)
    : ep_(ep), num_experts_(num_experts) {
  TORCH_CHECK(num_experts % ep.size() == 0, "dispatcher: ", ep.size(), " ranks do not divide ",
              num_experts, " experts");
}

std::unique_ptr<DispatchPlan> CollectiveDispatcher::Plan(const ops::Permutation& by_expert) {
  TORCH_CHECK(by_expert.offsets_E1.numel() == num_experts_ + 1, "dispatcher: ", num_experts_,
              " experts, routed to ", by_expert.offsets_E1.numel() - 1);
  auto plan = std::make_unique<CollectivePlan>();
  plan->num_tokens = by_expert.num_tokens;
  plan->sent = by_expert;

  const int64_t ranks = ep_.size();
  const int64_t local = num_local_experts();
  const at::Tensor send_RE =
      at::diff(by_expert.offsets_E1).to(at::kLong).view({ranks, local}).contiguous();
  at::Tensor recv_RE = at::empty_like(send_RE);
  const std::vector<int64_t> one_row(ranks, 1);
  ep_.AllToAll(recv_RE, send_RE, one_row, one_row);

  const at::Tensor send_host = send_RE.cpu(), recv_host = recv_RE.cpu();
  const auto send = send_host.accessor<int64_t, 2>(), recv = recv_host.accessor<int64_t, 2>();
  std::vector<int64_t> block_start(ranks * local);  // in arrival order: by rank, then expert
  int64_t arrived = 0;
  std::vector<int32_t> rows_per_expert(local, 0);
  for (int64_t r = 0; r < ranks; ++r) {
    int64_t send_rows = 0, recv_rows = 0;
    for (int64_t e = 0; e < local; ++e) {
      send_rows += send[r][e];
      block_start[r * local + e] = arrived + recv_rows;
      recv_rows += recv[r][e];
      rows_per_expert[e] += static_cast<int32_t>(recv[r][e]);
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
  const at::Device device = by_expert.offsets_E1.device();
  plan->arrival_N = arrival.to(device);
  plan->row_of_N = Inverse(plan->arrival_N);
  at::Tensor offsets = at::zeros({local + 1}, at::kInt);
  int32_t* offset = offsets.mutable_data_ptr<int32_t>();
  for (int64_t e = 0; e < local; ++e) offset[e + 1] = offset[e] + rows_per_expert[e];
  plan->offsets_E1 = offsets.to(device);
  return plan;
}

DispatchedRows CollectiveDispatcher::Dispatch(const DispatchPlan& base, const at::Tensor& x_TH,
                                              const at::Tensor& weights_TK) {
  const CollectivePlan& plan = Cast(base);
  const ops::PermutedRows sent = ops::PermuteRows(x_TH, weights_TK, plan.sent);
  DispatchedRows out;
  out.rows_NH = Send(ep_, plan, sent.rows_NH);
  if (weights_TK.defined()) out.weights_N = Send(ep_, plan, sent.scalars_N);
  return out;
}

at::Tensor CollectiveDispatcher::Combine(const DispatchPlan& base, const at::Tensor& rows_NH,
                                         const at::Tensor& residual_TH) {
  const CollectivePlan& plan = Cast(base);
  CheckRows(plan, rows_NH);
  return ops::UnpermuteSum(Return(ep_, plan, rows_NH), residual_TH, plan.sent);
}

CombinedGradients CollectiveDispatcher::CombineGradients(const DispatchPlan& base,
                                                         const at::Tensor& drows_NH,
                                                         const at::Tensor& dweights_PN) {
  const CollectivePlan& plan = Cast(base);
  CheckRows(plan, drows_NH);
  const at::Tensor drows = Return(ep_, plan, drows_NH);
  // Partial sums are added before they travel.
  const at::Tensor dweights = Return(ep_, plan, dweights_PN.sum(0)).unsqueeze(0);
  CombinedGradients out;
  out.dx_TH = ops::UnpermuteSum(drows, {}, plan.sent, dweights, &out.dweights_TK);
  return out;
}

}  // namespace switchyard
