// The softmax router and its auxiliary losses.
//
// T tokens, E experts, K experts per token, L MoE layers. CUDA, bf16 logits: E <= 512, K <= 16;
// else composed of ATen's operations. Neither waits for the device.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_ROUTER_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_ROUTER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/trainer/ops/permute.h"

namespace switchyard::ops {

struct RouterOptions {
  int64_t top_k = 0;
  bool normalize = false;                    // divide the chosen probabilities by their sum
  at::ScalarType weights_type = at::kFloat;  // what weights are rounded to: the activations' dtype
  bool prob_sums = false;
};

// What was decided, and what its backward needs. Recomputation replays it: the choice is never
// taken again.
struct RouterChoice {
  at::Tensor logits_TE;    // as given
  at::Tensor ids_TK;       // int32, most probable first
  at::Tensor weights_TK;   // accumulation dtype, rounded to weights_type
  Permutation by_expert;   // the copies' rows, grouped by expert
  at::Tensor prob_sums_E;  // sums of the probabilities over the tokens; undefined unless wanted
};

// Softmax over all experts in the accumulation dtype, then the K most probable.
RouterChoice RouterForward(const at::Tensor& logits_TE, const RouterOptions& options);

// Gradient of the logits, in their dtype. dweights_TK: of the weights. daux_E: of the auxiliary
// loss by each expert's probability, the same for all tokens, accumulation dtype; may be undefined.
at::Tensor RouterBackward(const RouterChoice& choice, const at::Tensor& dweights_TK, bool normalize,
                          const at::Tensor& daux_E);

struct AuxLossValue {
  at::Tensor value;     // float64, 0-dim
  at::Tensor dprob_LE;  // float64: of `value` by any one token's probability of the expert there
};
// counts_LE: token copies per expert; prob_sums_LE: probabilities summed over the tokens. Both are
// of one micro-batch, on one device. tokens == 0: the loss and its gradient are 0.
//   Hf:       E * sum_e mean over layers and tokens(copies of e) * mean over both(p_e)
//   Megatron: sum over layers of E / (K T^2) * sum_e copies(e) * sum_t p_e
// The counts are constants to the gradient, as in both origins.
AuxLossValue HfAuxLoss(const at::Tensor& counts_LE, const at::Tensor& prob_sums_LE, int64_t tokens);
AuxLossValue MegatronAuxLoss(const at::Tensor& counts_LE, const at::Tensor& prob_sums_LE,
                             int64_t tokens, int64_t top_k);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_ROUTER_H_
