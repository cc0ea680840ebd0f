// L tokens of one document.
#include "worker/trainer/ops/attention_composed.h"

#include <ATen/ATen.h>

#include <limits>

#include "worker/trainer/ops/dtype.h"

namespace switchyard::ops {
namespace {

// Calls f(first token, tokens) for every document that has tokens.
template <typename F>
void ForEachDocument(const AttentionPlan& plan, F f) {
  for (size_t i = 0; i + 1 < plan.cu_seqlens.size(); ++i) {
    const int64_t length = plan.cu_seqlens[i + 1] - plan.cu_seqlens[i];
    if (length > 0) f(plan.cu_seqlens[i], length);
  }
}

// One document of [T, heads, d] in the accumulation dtype as [N, L, d]; heads are repeated.
at::Tensor Slice(const at::Tensor& x, int64_t begin, int64_t length, int64_t repeats) {
  return x.narrow(0, begin, length)
      .to(AccumulateType(x))
      .transpose(0, 1)
      .repeat_interleave(repeats, 0);
}

// Scaled scores [N, L, L], minus infinity where a token does not see another.
at::Tensor Scores(const at::Tensor& q_NLd, const at::Tensor& k_NLd, double scale, int64_t window) {
  const at::Tensor scores = at::matmul(q_NLd, k_NLd.transpose(1, 2)).mul_(scale);
  const int64_t length = q_NLd.size(1);
  at::Tensor visible = at::ones({length, length}, q_NLd.options().dtype(at::kBool)).tril(0);
  if (window > 0) visible = visible.triu(1 - window);
  return scores.masked_fill(visible.logical_not(), -std::numeric_limits<double>::infinity());
}

// [N, L, d], summed over the query heads of a key/value head, -> [L, heads, d] of type `type`.
at::Tensor Fold(const at::Tensor& x_NLd, int64_t repeats, at::ScalarType type) {
  const auto s = x_NLd.sizes();
  return x_NLd.reshape({s[0] / repeats, repeats, s[1], s[2]}).sum(1).transpose(0, 1).to(type);
}

}  // namespace

AttentionOutput ComposedAttentionForward(const at::Tensor& q_TNd, const at::Tensor& k_TMd,
                                         const at::Tensor& v_TMd, const AttentionPlan& plan,
                                         double scale, int64_t window) {
  const int64_t repeats = q_TNd.size(1) / k_TMd.size(1);
  AttentionOutput out{
      at::empty(q_TNd.sizes(), q_TNd.options()),
      at::empty({q_TNd.size(0), q_TNd.size(1)}, q_TNd.options().dtype(AccumulateType(q_TNd)))};
  ForEachDocument(plan, [&](int64_t begin, int64_t length) {
    const at::Tensor scores =
        Scores(Slice(q_TNd, begin, length, 1), Slice(k_TMd, begin, length, repeats), scale, window);
    const at::Tensor lse_NL = scores.logsumexp(2);
    const at::Tensor p = (scores - lse_NL.unsqueeze(2)).exp();
    const at::Tensor o_NLd = at::matmul(p, Slice(v_TMd, begin, length, repeats));
    out.out_TNd.narrow(0, begin, length).copy_(o_NLd.transpose(0, 1));
    out.log_sum_exp_TN.narrow(0, begin, length).copy_(lse_NL.t());
  });
  return out;
}

AttentionGradients ComposedAttentionBackward(const at::Tensor& dout_TNd, const at::Tensor& q_TNd,
                                             const at::Tensor& k_TMd, const at::Tensor& v_TMd,
                                             const AttentionOutput& saved,
                                             const AttentionPlan& plan, double scale,
                                             int64_t window) {
  const int64_t repeats = q_TNd.size(1) / k_TMd.size(1);
  const at::ScalarType type = q_TNd.scalar_type();
  AttentionGradients out{at::empty(q_TNd.sizes(), q_TNd.options()),
                         at::empty(k_TMd.sizes(), k_TMd.options()),
                         at::empty(v_TMd.sizes(), v_TMd.options())};
  ForEachDocument(plan, [&](int64_t begin, int64_t length) {
    const at::Tensor q_NLd = Slice(q_TNd, begin, length, 1);
    const at::Tensor k_NLd = Slice(k_TMd, begin, length, repeats);
    const at::Tensor v_NLd = Slice(v_TMd, begin, length, repeats);
    const at::Tensor dout_NLd = Slice(dout_TNd, begin, length, 1);
    const at::Tensor lse_NL = saved.log_sum_exp_TN.narrow(0, begin, length).t();
    const at::Tensor p = (Scores(q_NLd, k_NLd, scale, window) - lse_NL.unsqueeze(2)).exp();
    const at::Tensor correction =
        (dout_NLd * Slice(saved.out_TNd, begin, length, 1)).sum(2, /*keepdim=*/true);
    const at::Tensor ds = p * (at::matmul(dout_NLd, v_NLd.transpose(1, 2)) - correction) * scale;
    out.dq_TNd.narrow(0, begin, length).copy_(Fold(at::matmul(ds, k_NLd), 1, type));
    out.dk_TMd.narrow(0, begin, length)
        .copy_(Fold(at::matmul(ds.transpose(1, 2), q_NLd), repeats, type));
    out.dv_TMd.narrow(0, begin, length)
        .copy_(Fold(at::matmul(p.transpose(1, 2), dout_NLd), repeats, type));
  });
  return out;
}

}  // namespace switchyard::ops
