#include "worker/trainer/ops/router.h"

#include <ATen/ATen.h>

#include <tuple>

#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops {
namespace {

at::Tensor Probabilities(const at::Tensor& logits_TE) {
  return at::softmax(logits_TE, 1, AccumulateType(logits_TE));
}

AuxLossValue NoLoss(const at::Tensor& counts_LE) {
  const at::TensorOptions wide = counts_LE.options().dtype(at::kDouble);
  return {at::zeros({}, wide), at::zeros(counts_LE.sizes(), wide)};
}

}  // namespace

RouterChoice RouterForward(const at::Tensor& logits_TE, const RouterOptions& options) {
  TORCH_CHECK(logits_TE.dim() == 2 && options.top_k >= 1 && options.top_k <= logits_TE.size(1),
              "router: top ", options.top_k, " of logits ", logits_TE.sizes());
#if defined(SY_CUDA)
  if (on_cuda::ServesRouter(logits_TE, options)) return on_cuda::RouterForward(logits_TE, options);
#endif
  RouterChoice out;
  out.logits_TE = logits_TE;
  const at::Tensor probs_TE = Probabilities(logits_TE);
  auto [chosen_TK, ids_TK] =
      at::topk(probs_TE, options.top_k, 1, /*largest=*/true, /*sorted=*/true);
  if (options.normalize) chosen_TK = chosen_TK / chosen_TK.sum(1, /*keepdim=*/true);
  out.ids_TK = ids_TK.to(at::kInt);
  out.weights_TK = chosen_TK.to(options.weights_type).to(probs_TE.scalar_type());
  out.by_expert = MakePermutation(out.ids_TK, logits_TE.size(1));
  if (options.prob_sums) out.prob_sums_E = probs_TE.sum(0, /*keepdim=*/false, at::kDouble);
  return out;
}

at::Tensor RouterBackward(const RouterChoice& choice, const at::Tensor& dweights_TK, bool normalize,
                          const at::Tensor& daux_E) {
#if defined(SY_CUDA)
  if (on_cuda::ServesRouterBackward(choice)) {
    return on_cuda::RouterBackward(choice, dweights_TK, normalize, daux_E);
  }
#endif
  const at::Tensor probs_TE = Probabilities(choice.logits_TE);
  const at::Tensor ids_TK = choice.ids_TK.to(at::kLong);
  at::Tensor dchosen_TK = dweights_TK.to(probs_TE.scalar_type());
  if (normalize) {
    // g = p / s with s = sum of the chosen p: dp_k = (dg_k - sum_j dg_j g_j) / s.
    const at::Tensor chosen_TK = probs_TE.gather(1, ids_TK);
    const at::Tensor sum_T1 = chosen_TK.sum(1, /*keepdim=*/true);
    const at::Tensor dot_T1 = (dchosen_TK * chosen_TK).sum(1, /*keepdim=*/true) / sum_T1;
    dchosen_TK = (dchosen_TK - dot_T1) / sum_T1;
  }
  at::Tensor dprobs_TE = at::zeros(probs_TE.sizes(), probs_TE.options());
  if (daux_E.defined()) dprobs_TE.add_(daux_E.to(probs_TE.scalar_type()).unsqueeze(0));
  // A token's ids are distinct: no two writes meet.
  dprobs_TE.scatter_add_(1, ids_TK, dchosen_TK);
  const at::Tensor dot_T1 = (dprobs_TE * probs_TE).sum(1, /*keepdim=*/true);
  return dprobs_TE.sub_(dot_T1).mul_(probs_TE).to(choice.logits_TE.scalar_type());
}

AuxLossValue HfAuxLoss(const at::Tensor& counts_LE, const at::Tensor& prob_sums_LE,
                       int64_t tokens) {
  const double rows = static_cast<double>(tokens) * static_cast<double>(counts_LE.size(0));
  AuxLossValue out = NoLoss(counts_LE);
  if (rows == 0) return out;
  const double experts = static_cast<double>(counts_LE.size(1));
  const at::Tensor share_E = counts_LE.sum(0).to(at::kDouble) / rows;
  const at::Tensor prob_E = prob_sums_LE.to(at::kDouble).sum(0) / rows;
  out.value = (share_E * prob_E).sum() * experts;
  out.dprob_LE.add_((share_E * (experts / rows)).unsqueeze(0));
  return out;
}

AuxLossValue MegatronAuxLoss(const at::Tensor& counts_LE, const at::Tensor& prob_sums_LE,
                             int64_t tokens, int64_t top_k) {
  if (tokens == 0) return NoLoss(counts_LE);
  const double t = static_cast<double>(tokens);
  const double experts = static_cast<double>(counts_LE.size(1));
  const at::Tensor load_LE =
      counts_LE.to(at::kDouble) * (experts / (static_cast<double>(top_k) * t));
  return {(load_LE * prob_sums_LE.to(at::kDouble)).sum() / t, load_LE / t};
}

}  // namespace switchyard::ops
