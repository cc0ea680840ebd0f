// The softmax router and its auxiliary losses.
//
// T tokens, E experts, K experts per token, L MoE layers.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_ROUTER_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_ROUTER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace switchyard::ops {

struct RouterChoice {
  at::Tensor probs_TE;    // softmax of the logits, accumulation dtype
  at::Tensor ids_TK;      // int64, most probable first
  at::Tensor weights_TK;  // dtype of the logits
};

// Softmax over all experts in the accumulation dtype, then the K most probable; `normalize` divides
// their weights by their sum. Weights are rounded to the dtype of the logits.
RouterChoice RouterForward(const at::Tensor& logits_TE, int64_t top_k, bool normalize);
// The same with ids that were chosen before: what a recomputed block uses.
RouterChoice RouterReplay(const at::Tensor& logits_TE, const at::Tensor& ids_TK, bool normalize);

// Gradient of the logits, in the dtype `type`. dweights_TK: of the weights. daux_E: of the
// auxiliary loss by each expert's probability, the same for all tokens; may be undefined.
at::Tensor RouterBackward(const at::Tensor& dweights_TK, const at::Tensor& probs_TE,
                          const at::Tensor& ids_TK, bool normalize, const at::Tensor& daux_E,
                          at::ScalarType type);

struct AuxLossValue {
  double value = 0;
  at::Tensor dprob_LE;  // of `value` by any one token's probability of the expert in that layer
};
// counts_LE: int64, token copies per expert; prob_sums_LE: probabilities summed over the tokens.
// Both are of one micro-batch. tokens == 0: the loss and its gradient are 0.
//   Hf:       E * sum_e mean over layers and tokens(copies of e) * mean over both(p_e)
//   Megatron: sum over layers of E / (K T^2) * sum_e copies(e) * sum_t p_e
// The counts are constants to the gradient, as in both origins.
AuxLossValue HfAuxLoss(const at::Tensor& counts_LE, const at::Tensor& prob_sums_LE, int64_t tokens);
AuxLossValue MegatronAuxLoss(const at::Tensor& counts_LE, const at::Tensor& prob_sums_LE,
                             int64_t tokens, int64_t top_k);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_ROUTER_H_
