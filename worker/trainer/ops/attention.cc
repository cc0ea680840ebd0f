// B documents of a batch, L its length, S = B * L slots.
#include "worker/trainer/ops/attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>

#include "worker/trainer/ops/dtype.h"

namespace switchyard::ops {
namespace {

// A document joins a batch when at least this share of its padded row is real. Padding costs time
// in proportion to the square of the length, one more batch costs some dozen small calls.
constexpr int64_t kMinFillPercent = 75;

using Batch = AttentionPlan::Batch;

at::Tensor ToTensor(const std::vector<int64_t>& values) {
  return at::tensor(values, at::TensorOptions().dtype(at::kLong));
}

Batch MakeBatch(const std::vector<int64_t>& cu_seqlens, const std::vector<int64_t>& documents,
                int64_t length) {
  std::vector<int64_t> token_of_slot, padding_slots, tokens, slots;
  for (int64_t document : documents) {
    const int64_t begin = cu_seqlens[document];
    const int64_t size = cu_seqlens[document + 1] - begin;
    for (int64_t i = 0; i < length; ++i) {
      const int64_t slot = static_cast<int64_t>(token_of_slot.size());
      if (i < size) {
        tokens.push_back(begin + i);
        slots.push_back(slot);
      } else {
        padding_slots.push_back(slot);
      }
      token_of_slot.push_back(i < size ? begin + i : begin);
    }
  }
  Batch batch;
  batch.documents = static_cast<int64_t>(documents.size());
  batch.length = length;
  batch.contiguous = padding_slots.empty() &&
                     static_cast<int64_t>(tokens.size()) == cu_seqlens.back() &&
                     std::is_sorted(tokens.begin(), tokens.end());
  if (!batch.contiguous) {
    batch.token_of_slot = ToTensor(token_of_slot);
    batch.padding_slots = ToTensor(padding_slots);
    batch.tokens = ToTensor(tokens);
    batch.slots = ToTensor(slots);
  }
  return batch;
}

// [T, heads, d] -> [B, heads, L, d]; key/value heads are repeated for their query heads. Padding
// holds finite values, or zeros when asked for.
at::Tensor ToSlots(const at::Tensor& x_TMd, const Batch& batch, int64_t repeats,
                   bool zero_padding = false) {
  const int64_t heads = x_TMd.size(1);
  const int64_t d = x_TMd.size(2);
  at::Tensor x = x_TMd;
  if (!batch.contiguous) {
    x = x.index_select(0, batch.token_of_slot);
    if (zero_padding) x.index_fill_(0, batch.padding_slots, 0);
  }
  x = x.reshape({batch.documents, batch.length, heads, d}).transpose(1, 2);
  if (repeats == 1) return x;
  return x.unsqueeze(2)
      .expand({batch.documents, heads, repeats, batch.length, d})
      .reshape({batch.documents, heads * repeats, batch.length, d});
}

// [B, heads, L, ...] -> rows of `out` [T, heads, ...].
void FromSlots(const at::Tensor& x_BNL, const Batch& batch, at::Tensor out_TN) {
  std::vector<int64_t> sizes = out_TN.sizes().vec();
  sizes[0] = batch.documents * batch.length;
  const at::Tensor x_SN = x_BNL.transpose(1, 2).reshape(sizes);
  if (batch.contiguous) {
    out_TN.copy_(x_SN);
  } else {
    out_TN.index_copy_(0, batch.tokens, x_SN.index_select(0, batch.slots));
  }
}

// Sums the gradients of a key/value head's query heads, in head order.
at::Tensor FoldHeads(const at::Tensor& dx_BNLd, int64_t repeats) {
  if (repeats == 1) return dx_BNLd;
  const auto s = dx_BNLd.sizes();
  return dx_BNLd.reshape({s[0], s[1] / repeats, repeats, s[2], s[3]})
      .sum(2, /*keepdim=*/false, AccumulateType(dx_BNLd))
      .to(dx_BNLd.scalar_type());
}

// A mask only where the window is shorter than the documents; else causality is enough.
std::optional<at::Tensor> WindowMask(const Batch& batch, int64_t window, const at::Tensor& like) {
  if (window == 0 || window >= batch.length) return std::nullopt;
  const at::Tensor ones = at::ones({batch.length, batch.length}, like.options().dtype(at::kBool));
  const at::Tensor visible = ones.tril(0).logical_and_(ones.triu(1 - window));
  return at::zeros({batch.length, batch.length}, like.options())
      .masked_fill_(visible.logical_not(), -std::numeric_limits<double>::infinity());
}

void Check(const at::Tensor& q_TNd, const at::Tensor& k_TMd, const at::Tensor& v_TMd,
           const AttentionPlan& plan) {
  TORCH_CHECK(q_TNd.dim() == 3 && k_TMd.dim() == 3 && k_TMd.sizes() == v_TMd.sizes() &&
                  q_TNd.size(2) == k_TMd.size(2) && q_TNd.size(1) % k_TMd.size(1) == 0,
              "attention: q ", q_TNd.sizes(), " does not fit k ", k_TMd.sizes(), " and v ",
              v_TMd.sizes());
  TORCH_CHECK(q_TNd.size(0) == plan.num_tokens && k_TMd.size(0) == plan.num_tokens,
              "attention: ", q_TNd.size(0), " tokens, the documents have ", plan.num_tokens);
}

}  // namespace

AttentionPlan MakeAttentionPlan(const std::vector<int64_t>& cu_seqlens) {
  TORCH_CHECK(!cu_seqlens.empty() && cu_seqlens.front() == 0 &&
                  std::is_sorted(cu_seqlens.begin(), cu_seqlens.end()),
              "attention: cu_seqlens must start at 0 and not descend");
  AttentionPlan plan;
  plan.num_tokens = cu_seqlens.back();
  const auto length = [&](int64_t i) { return cu_seqlens[i + 1] - cu_seqlens[i]; };
  std::vector<int64_t> order(cu_seqlens.size() - 1);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return length(a) > length(b); });
  size_t begin = 0;
  while (begin < order.size() && length(order[begin]) > 0) {
    const int64_t longest = length(order[begin]);
    size_t end = begin + 1;
    while (end < order.size() && length(order[end]) > 0 &&
           100 * length(order[end]) >= kMinFillPercent * longest) {
      ++end;
    }
    plan.batches.push_back(MakeBatch(
        cu_seqlens, std::vector<int64_t>(order.begin() + begin, order.begin() + end), longest));
    begin = end;
  }
  return plan;
}

AttentionOutput AttentionForward(const at::Tensor& q_TNd, const at::Tensor& k_TMd,
                                 const at::Tensor& v_TMd, const AttentionPlan& plan, double scale,
                                 int64_t window) {
  Check(q_TNd, k_TMd, v_TMd, plan);
  const int64_t repeats = q_TNd.size(1) / k_TMd.size(1);
  AttentionOutput out;
  out.out_TNd = at::empty(q_TNd.sizes(), q_TNd.options());
  out.log_sum_exp_TN =
      at::empty({q_TNd.size(0), q_TNd.size(1)}, q_TNd.options().dtype(AccumulateType(q_TNd)));
  for (const Batch& batch : plan.batches) {
    const std::optional<at::Tensor> mask = WindowMask(batch, window, q_TNd);
    const auto [o, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
        ToSlots(q_TNd, batch, 1), ToSlots(k_TMd, batch, repeats), ToSlots(v_TMd, batch, repeats),
        /*dropout_p=*/0.0, /*is_causal=*/!mask.has_value(), mask, scale);
    FromSlots(o, batch, out.out_TNd);
    FromSlots(lse, batch, out.log_sum_exp_TN);
  }
  return out;
}

AttentionGradients AttentionBackward(const at::Tensor& dout_TNd, const at::Tensor& q_TNd,
                                     const at::Tensor& k_TMd, const at::Tensor& v_TMd,
                                     const AttentionOutput& saved, const AttentionPlan& plan,
                                     double scale, int64_t window) {
  Check(q_TNd, k_TMd, v_TMd, plan);
  const int64_t repeats = q_TNd.size(1) / k_TMd.size(1);
  AttentionGradients out{at::empty(q_TNd.sizes(), q_TNd.options()),
                         at::empty(k_TMd.sizes(), k_TMd.options()),
                         at::empty(v_TMd.sizes(), v_TMd.options())};
  for (const Batch& batch : plan.batches) {
    const std::optional<at::Tensor> mask = WindowMask(batch, window, q_TNd);
    const at::Tensor lse = ToSlots(saved.log_sum_exp_TN.unsqueeze(2), batch, 1).squeeze(3);
    // Zeros in the padding of `dout`: it must not push on anything.
    const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        ToSlots(dout_TNd, batch, 1, /*zero_padding=*/true), ToSlots(q_TNd, batch, 1),
        ToSlots(k_TMd, batch, repeats), ToSlots(v_TMd, batch, repeats),
        ToSlots(saved.out_TNd, batch, 1), lse,
        /*dropout_p=*/0.0, /*is_causal=*/!mask.has_value(), mask, scale);
    FromSlots(dq, batch, out.dq_TNd);
    FromSlots(FoldHeads(dk, repeats), batch, out.dk_TMd);
    FromSlots(FoldHeads(dv, repeats), batch, out.dv_TMd);
  }
  return out;
}

}  // namespace switchyard::ops
