// T tokens, K experts per token, N rows of this rank's experts, H hidden, E experts, R ranks. A
// record is one (token, rank) pair of which the rank owns some of the token's experts: S records
// are sent, by rank, then token; M are received, by source rank, then token.
#include "worker/trainer/parallel/collective_dispatcher.h"

#include <ATen/ATen.h>

#include <vector>

#include "worker/trainer/ops/permute.h"

namespace switchyard {
namespace {

struct CollectivePlan final : DispatchPlan {
  std::vector<int64_t> send_records;  // [R]
  std::vector<int64_t> recv_records;  // [R]
  at::Tensor token_of_S;              // int64: of each record sent
  ops::RowMap partials;               // (token, rank) -> record sent
  at::Tensor scalar_of_TK;            // int64: each copy's place in the scalars [S * K] sent
  ops::RowMap rows;                   // (record received, k) -> row
};

struct CollectiveDispatch final : PendingDispatch {
  DispatchedRows rows;
};

struct CollectiveCombine final : PendingCombine {
  const CollectivePlan* plan = nullptr;
  at::Tensor partials_SH;
  at::Tensor dweights_SK;  // undefined: none
};

const CollectivePlan& Cast(const DispatchPlan& plan) {
  return static_cast<const CollectivePlan&>(plan);
}

// Records sent -> records received.
at::Tensor Send(Comm& ep, const CollectivePlan& plan, const at::Tensor& sent_SX) {
  at::Tensor arrived = at::empty({plan.rows.num_tokens, sent_SX.size(1)}, sent_SX.options());
  ep.AllToAll(arrived, sent_SX, plan.recv_records, plan.send_records);
  return arrived;
}

// The way back.
at::Tensor Return(Comm& ep, const CollectivePlan& plan, const at::Tensor& received_MX) {
  at::Tensor back = at::empty({plan.partials.num_rows, received_MX.size(1)}, received_MX.options());
  ep.AllToAll(back, received_MX, plan.send_records, plan.recv_records);
  return back;
}

// What a rank learns from the counts of all ranks: copies by expert [R][E].
struct Layout {
  std::vector<int64_t> first_row_E;  // of this rank's copies for an expert, at the expert's rank
  std::vector<int32_t> offsets_E1;   // of this rank's own experts
};

Layout LayOut(const std::vector<const int64_t*>& copies_RE, int64_t experts, int me) {
  const int ranks = static_cast<int>(copies_RE.size());
  const int64_t local = experts / ranks;
  Layout out;
  for (int owner = 0; owner < ranks; ++owner) {
    int64_t row = 0;
    for (int64_t e = owner * local; e < (owner + 1) * local; ++e) {
      if (owner == me) out.offsets_E1.push_back(static_cast<int32_t>(row));
      for (int source = 0; source < ranks; ++source) {
        if (source == me) out.first_row_E.push_back(row);
        row += copies_RE[source][e];
      }
    }
    if (owner == me) out.offsets_E1.push_back(static_cast<int32_t>(row));
  }
  return out;
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
  const int64_t ranks = ep_.size(), tokens = by_expert.num_tokens, top_k = by_expert.top_k;
  const at::Device device = by_expert.offsets_E1.device();
  auto plan = std::make_unique<CollectivePlan>();
  plan->num_tokens = tokens;

  // Which expert and which rank each copy goes to.
  const at::Tensor expert_TK =
      at::searchsorted(by_expert.offsets_E1.narrow(0, 1, num_experts_), by_expert.row_of_TK,
                       /*out_int32=*/false, /*right=*/true)
          .view({tokens, top_k});
  const at::Tensor rank_TK = at::div(expert_TK, num_local_experts(), "floor");
  const at::Tensor touched_RT =
      at::zeros({tokens, ranks}, at::TensorOptions(device).dtype(at::kBool))
          .scatter_(1, rank_TK, true)
          .t()
          .contiguous();

  const at::Tensor mine =
      at::cat({at::diff(by_expert.offsets_E1).to(at::kLong), touched_RT.sum(1, false, at::kLong)});
  at::Tensor all = at::empty({ranks * mine.numel()}, mine.options());
  ep_.AllGather(all, mine);
  const at::Tensor counts = all.cpu();
  std::vector<const int64_t*> copies_RE, records_RR;
  for (int64_t r = 0; r < ranks; ++r) {
    copies_RE.push_back(counts.const_data_ptr<int64_t>() + r * mine.numel());
    records_RR.push_back(copies_RE.back() + num_experts_);
  }
  for (int64_t r = 0; r < ranks; ++r) {
    plan->send_records.push_back(records_RR[ep_.rank()][r]);
    plan->recv_records.push_back(records_RR[r][ep_.rank()]);
    plan->partials.num_rows += plan->send_records.back();
    plan->rows.num_tokens += plan->recv_records.back();
  }
  const Layout layout = LayOut(copies_RE, num_experts_, ep_.rank());
  plan->num_rows = layout.offsets_E1.back();
  plan->offsets_E1 = at::tensor(layout.offsets_E1, at::kInt).to(device);

  const at::Tensor record_RT =
      (at::cumsum(touched_RT.view({-1}), 0, at::kLong) - 1).view({ranks, tokens});
  plan->token_of_S = touched_RT.nonzero().select(1, 1).contiguous();
  plan->partials.num_tokens = tokens;
  plan->partials.top_k = ranks;
  plan->partials.row_of_TK =
      record_RT.masked_fill(touched_RT.logical_not(), -1).t().to(at::kInt).contiguous().view({-1});
  plan->scalar_of_TK = (record_RT.t().gather(1, rank_TK) * top_k +
                        at::arange(top_k, at::TensorOptions(device).dtype(at::kLong)))
                           .view({-1});

  // Tell the owners where each record's rows lie.
  const at::Tensor first_row_E = at::tensor(layout.first_row_E, at::kLong).to(device);
  const at::Tensor shift_E = first_row_E - by_expert.offsets_E1.narrow(0, 0, num_experts_);
  const at::Tensor row_TK = by_expert.row_of_TK + shift_E.index_select(0, expert_TK.view({-1}));
  at::Tensor row_SK =
      at::full({plan->partials.num_rows * top_k}, -1, by_expert.row_of_TK.options());
  row_SK.index_copy_(0, plan->scalar_of_TK, row_TK.to(at::kInt));
  plan->rows.top_k = top_k;
  plan->rows.num_rows = plan->num_rows;
  plan->rows.row_of_TK = Send(ep_, *plan, row_SK.view({plan->partials.num_rows, top_k})).view({-1});
  return plan;
}

std::unique_ptr<PendingDispatch> CollectiveDispatcher::BeginDispatch(const DispatchPlan& base,
                                                                     const at::Tensor& x_TH,
                                                                     const at::Tensor& weights_TK) {
  const CollectivePlan& plan = Cast(base);
  TORCH_CHECK(x_TH.dim() == 2 && x_TH.size(0) == plan.num_tokens, "dispatch: x must be [",
              plan.num_tokens, ", hidden], got ", x_TH.sizes());
  const at::Tensor records_MH = Send(ep_, plan, x_TH.index_select(0, plan.token_of_S));
  at::Tensor weights_MK;
  if (weights_TK.defined()) {
    weights_MK = Send(ep_, plan, weights_TK.index_select(0, plan.token_of_S));
  }
  auto pending = std::make_unique<CollectiveDispatch>();
  ops::PermutedRows out = ops::PermuteRows(records_MH, weights_MK, plan.rows);
  pending->rows = {std::move(out.rows_NH), std::move(out.scalars_N)};
  return pending;
}

DispatchedRows CollectiveDispatcher::FinishDispatch(std::unique_ptr<PendingDispatch> pending) {
  return std::move(static_cast<CollectiveDispatch&>(*pending).rows);
}

std::unique_ptr<PendingCombine> CollectiveDispatcher::BeginCombine(const DispatchPlan& base,
                                                                   const at::Tensor& rows_NH,
                                                                   const at::Tensor& dweights_PN) {
  const CollectivePlan& plan = Cast(base);
  auto pending = std::make_unique<CollectiveCombine>();
  pending->plan = &plan;
  at::Tensor dweights_MK;
  const at::Tensor partials_MH = ops::UnpermuteSum(rows_NH, {}, plan.rows, dweights_PN,
                                                   dweights_PN.defined() ? &dweights_MK : nullptr);
  pending->partials_SH = Return(ep_, plan, partials_MH);
  if (dweights_MK.defined()) pending->dweights_SK = Return(ep_, plan, dweights_MK);
  return pending;
}

CombinedRows CollectiveDispatcher::FinishCombine(std::unique_ptr<PendingCombine> pending,
                                                 const at::Tensor& residual_TH) {
  const auto& combine = static_cast<const CollectiveCombine&>(*pending);
  const CollectivePlan& plan = *combine.plan;
  CombinedRows out;
  out.sum_TH = ops::UnpermuteSum(combine.partials_SH, residual_TH, plan.partials);
  if (combine.dweights_SK.defined()) {
    out.dweights_TK = combine.dweights_SK.view({-1})
                          .index_select(0, plan.scalar_of_TK)
                          .view({plan.num_tokens, plan.rows.top_k});
  }
  return out;
}

}  // namespace switchyard
