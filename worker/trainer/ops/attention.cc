// B documents of a batch, L its length, S = B * L slots.
#include "worker/trainer/ops/attention.h"

#include <ATen/ATen.h>

#include <limits>
#include <optional>

#include "worker/trainer/ops/attention_composed.h"
#include "worker/trainer/ops/dtype.h"
#ifdef SY_CUDA
#include "worker/trainer/ops/attention_cuda.h"
#endif

namespace switchyard::ops {
namespace {

using Batch = AttentionPlan::Batch;

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

// `tensor`, or a new dense one like `like`.
at::Tensor OrEmpty(const at::Tensor& tensor, const at::Tensor& like) {
  if (!tensor.defined()) return at::empty(like.sizes(), like.options());
  TORCH_CHECK(tensor.sizes() == like.sizes() && tensor.scalar_type() == like.scalar_type(),
              "attention: a gradient ", tensor.sizes(), " was given for ", like.sizes());
  return tensor;
}

AttentionOutput CpuForward(const at::Tensor& q_TNd, const at::Tensor& k_TMd,
                           const at::Tensor& v_TMd, const AttentionPlan& plan, double scale,
                           int64_t window) {
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

AttentionGradients CpuBackward(const at::Tensor& dout_TNd, const at::Tensor& q_TNd,
                               const at::Tensor& k_TMd, const at::Tensor& v_TMd,
                               const AttentionOutput& saved, const AttentionPlan& plan,
                               double scale, int64_t window, const AttentionGradients& into) {
  const int64_t repeats = q_TNd.size(1) / k_TMd.size(1);
  AttentionGradients out{OrEmpty(into.dq_TNd, q_TNd), OrEmpty(into.dk_TMd, k_TMd),
                         OrEmpty(into.dv_TMd, v_TMd)};
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

#ifdef SY_CUDA
// As the kernels read it: dense heads, 16-byte alignment. A copy only where it is not.
at::Tensor ForKernels(const at::Tensor& x_TNd) {
  const bool fits = x_TNd.stride(2) == 1 && x_TNd.stride(1) == x_TNd.size(2) &&
                    x_TNd.stride(0) % 8 == 0 &&
                    reinterpret_cast<uintptr_t>(x_TNd.data_ptr()) % 16 == 0;
  return fits ? x_TNd : x_TNd.clone(at::MemoryFormat::Contiguous);
}
#endif

// Moves what a backend computed to where the caller wants it.
void Deliver(const at::Tensor& wanted, at::Tensor& computed) {
  if (!wanted.defined() || wanted.is_same(computed)) return;
  wanted.copy_(computed);
  computed = wanted;
}

}  // namespace

AttentionOutput AttentionForward(const at::Tensor& q_TNd, const at::Tensor& k_TMd,
                                 const at::Tensor& v_TMd, const AttentionPlan& plan, double scale,
                                 int64_t window) {
  Check(q_TNd, k_TMd, v_TMd, plan);
  if (q_TNd.is_cpu()) return CpuForward(q_TNd, k_TMd, v_TMd, plan, scale, window);
#ifdef SY_CUDA
  if (q_TNd.scalar_type() == at::kBFloat16 && plan.num_tokens > 0) {
    return on_cuda::AttentionForward(
        {ForKernels(q_TNd), ForKernels(k_TMd), ForKernels(v_TMd), plan, scale, window});
  }
#endif
  return ComposedAttentionForward(q_TNd, k_TMd, v_TMd, plan, scale, window);
}

AttentionGradients AttentionBackward(const at::Tensor& dout_TNd, const at::Tensor& q_TNd,
                                     const at::Tensor& k_TMd, const at::Tensor& v_TMd,
                                     const AttentionOutput& saved, const AttentionPlan& plan,
                                     double scale, int64_t window, AttentionGradients into) {
  Check(q_TNd, k_TMd, v_TMd, plan);
  if (q_TNd.is_cpu()) {
    return CpuBackward(dout_TNd, q_TNd, k_TMd, v_TMd, saved, plan, scale, window, into);
  }
  AttentionGradients out;
#ifdef SY_CUDA
  if (q_TNd.scalar_type() == at::kBFloat16 && plan.num_tokens > 0) {
    out = on_cuda::AttentionBackward(
        {ForKernels(q_TNd), ForKernels(k_TMd), ForKernels(v_TMd), plan, scale, window},
        ForKernels(dout_TNd), saved);
  }
#endif
  if (!out.dq_TNd.defined()) {
    out = ComposedAttentionBackward(dout_TNd, q_TNd, k_TMd, v_TMd, saved, plan, scale, window);
  }
  Deliver(into.dq_TNd, out.dq_TNd);
  Deliver(into.dk_TMd, out.dk_TMd);
  Deliver(into.dv_TMd, out.dv_TMd);
  return out;
}

}  // namespace switchyard::ops
