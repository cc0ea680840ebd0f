// The specification of models/router.h, experts.h and moe_block.h in plain ATen, for autograd:
// every expert computes every token, and a token's weight multiplies the expert's output (after the
// down projection, unlike ours). Used by tests only.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_MOE_BLOCK_TWIN_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_MOE_BLOCK_TWIN_H_

#include <ATen/ATen.h>

#include <tuple>

#include "worker/trainer/models/mlp_twin.h"
#include "worker/trainer/models/model_config.h"
#include "worker/trainer/models/parameters.h"

namespace switchyard {

struct MoeTwinOutput {
  at::Tensor y_TH;
  at::Tensor probs_TE;
  at::Tensor chosen_TE;  // 1 where the token chose the expert
};

inline MoeTwinOutput MoeTwin(const ModelConfig& c, const at::Tensor& router_EH,
                             const ExpertParameters& experts, const at::Tensor& x_TH) {
  MoeTwinOutput out;
  out.probs_TE = at::softmax(at::matmul(x_TH, router_EH.t()), 1);
  const at::Tensor ids_TK = std::get<1>(at::topk(out.probs_TE, c.top_k, 1));
  out.chosen_TE = at::zeros(out.probs_TE.sizes(), x_TH.options()).scatter(1, ids_TK, 1.0);
  at::Tensor weights_TE = out.probs_TE * out.chosen_TE;
  if (c.norm_topk_prob) weights_TE = weights_TE / weights_TE.sum(1, /*keepdim=*/true);
  out.y_TH = at::zeros(x_TH.sizes(), x_TH.options());
  for (int64_t e = 0; e < c.num_experts; ++e) {
    out.y_TH = out.y_TH + weights_TE.select(1, e).unsqueeze(1) *
                              MlpTwin(experts.gate_up_E2FH[e], experts.down_EHF[e], x_TH);
  }
  return out;
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_MOE_BLOCK_TWIN_H_
