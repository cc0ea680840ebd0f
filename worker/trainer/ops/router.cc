#include "worker/trainer/ops/router.h"

#include <ATen/ATen.h>

#include <tuple>

#include "worker/trainer/ops/dtype.h"

namespace switchyard::ops {
namespace {

at::Tensor Weights(const at::Tensor& chosen_TK, bool normalize, at::ScalarType type) {
  return (normalize ? chosen_TK / chosen_TK.sum(1, /*keepdim=*/true) : chosen_TK).to(type);
}

at::Tensor Probabilities(const at::Tensor& logits_TE) {
  return at::softmax(logits_TE, 1, AccumulateType(logits_TE));
}

}  // namespace

RouterChoice RouterForward(const at::Tensor& logits_TE, int64_t top_k, bool normalize) {
  TORCH_CHECK(logits_TE.dim() == 2 && top_k >= 1 && top_k <= logits_TE.size(1), "router: top ",
              top_k, " of logits ", logits_TE.sizes());
  RouterChoice out;
  out.probs_TE = Probabilities(logits_TE);
  at::Tensor chosen_TK;
  std::tie(chosen_TK, out.ids_TK) =
      at::topk(out.probs_TE, top_k, 1, /*largest=*/true, /*sorted=*/true);
  out.weights_TK = Weights(chosen_TK, normalize, logits_TE.scalar_type());
  return out;
}

RouterChoice RouterReplay(const at::Tensor& logits_TE, const at::Tensor& ids_TK, bool normalize) {
  RouterChoice out;
  out.probs_TE = Probabilities(logits_TE);
  out.ids_TK = ids_TK;
  out.weights_TK = Weights(out.probs_TE.gather(1, ids_TK), normalize, logits_TE.scalar_type());
  return out;
}

at::Tensor RouterBackward(const at::Tensor& dweights_TK, const at::Tensor& probs_TE,
                          const at::Tensor& ids_TK, bool normalize, const at::Tensor& daux_E,
                          at::ScalarType type) {
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
  return dprobs_TE.sub_(dot_T1).mul_(probs_TE).to(type);
}

AuxLossValue HfAuxLoss(const at::Tensor& counts_LE, const at::Tensor& prob_sums_LE,
                       int64_t tokens) {
  AuxLossValue out;
  out.dprob_LE = at::zeros(counts_LE.sizes(), counts_LE.options().dtype(at::kDouble));
  const double rows = static_cast<double>(tokens) * static_cast<double>(counts_LE.size(0));
  if (rows == 0) return out;
  const double experts = static_cast<double>(counts_LE.size(1));
  const at::Tensor share_E = counts_LE.sum(0).to(at::kDouble) / rows;
  const at::Tensor prob_E = prob_sums_LE.to(at::kDouble).sum(0) / rows;
  out.value = experts * (share_E * prob_E).sum().item<double>();
  out.dprob_LE.add_((share_E * (experts / rows)).unsqueeze(0));
  return out;
}

AuxLossValue MegatronAuxLoss(const at::Tensor& counts_LE, const at::Tensor& prob_sums_LE,
                             int64_t tokens, int64_t top_k) {
  AuxLossValue out;
  out.dprob_LE = at::zeros(counts_LE.sizes(), counts_LE.options().dtype(at::kDouble));
  if (tokens == 0) return out;
  const double t = static_cast<double>(tokens);
  const double experts = static_cast<double>(counts_LE.size(1));
  const at::Tensor load_LE =
      counts_LE.to(at::kDouble) * (experts / (static_cast<double>(top_k) * t));
  out.value = (load_LE * prob_sums_LE.to(at::kDouble)).sum().item<double>() / t;
  out.dprob_LE.add_(load_LE / t);
  return out;
}

}  // namespace switchyard::ops
