// The dense gated feed-forward layer: y = down(silu(gate x) * up x). T tokens, H hidden, F ffn.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_MLP_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_MLP_H_

#include <ATen/core/Tensor.h>

#include "worker/trainer/models/parameters.h"

namespace switchyard {

struct MlpSaved {
  at::Tensor z_T2F;  // gate and up, before the activation
};

// x_TH is the normed input. `saved` may be null.
at::Tensor MlpForward(const MlpParameters& weights, const at::Tensor& x_TH, MlpSaved* saved);
// Everything of the forward that the backward needs, without the down projection.
void MlpRecompute(const MlpParameters& weights, const at::Tensor& x_TH, MlpSaved* saved);
// Returns dx; adds to `gradients`, or overwrites them.
at::Tensor MlpBackward(const MlpParameters& weights, const at::Tensor& dy_TH,
                       const at::Tensor& x_TH, const MlpSaved& saved,
                       const MlpParameters& gradients, bool accumulate);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_MLP_H_
