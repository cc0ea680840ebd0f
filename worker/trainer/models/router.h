// Scores -> the K experts of each token, their weights, and what the auxiliary loss needs.
//
// T tokens, H hidden, E experts, K experts per token.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_ROUTER_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_ROUTER_H_

#include <ATen/core/Tensor.h>

#include "worker/trainer/models/batch_context.h"
#include "worker/trainer/ops/router.h"

namespace switchyard {

// Logits in the dtype of x, as Transformers, or in fp32 with context.router_fp32. Weights are
// rounded to the dtype of x.
ops::RouterChoice RouterForward(const BatchContext& context, const at::Tensor& weight_EH,
                                const at::Tensor& x_TH);
// Adds to dx_TH. daux_E: see ops::RouterBackward; may be undefined.
void RouterBackward(const BatchContext& context, const at::Tensor& weight_EH,
                    const at::Tensor& dweights_TK, const at::Tensor& daux_E, const at::Tensor& x_TH,
                    const ops::RouterChoice& choice, at::Tensor dx_TH, at::Tensor dweight_EH,
                    bool accumulate);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_ROUTER_H_
