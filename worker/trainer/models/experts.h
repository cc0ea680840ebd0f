// The experts of this rank, over rows grouped by expert:
//     y = down_e( w * silu(gate_e x) * up_e x )
// The routing weight w of a row goes in before the down projection: its gradient is then a dot
// product at the hidden activation, and no expert output is kept.
//
// N rows, H hidden, F ffn, E experts of this rank.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_EXPERTS_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_EXPERTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/trainer/models/parameters.h"

namespace switchyard {

// Gate and up of each row, before the activation: [N, 2F]. What the backward keeps.
at::Tensor ExpertsGateUp(const ExpertParameters& weights, const at::Tensor& rows_NH,
                         const std::vector<int64_t>& rows_per_expert);
// [N, 2F], routing weights [N] -> [N, H].
at::Tensor ExpertsDown(const ExpertParameters& weights, const at::Tensor& z_N2F,
                       const at::Tensor& weights_N, const std::vector<int64_t>& rows_per_expert);

struct ExpertsGradients {
  at::Tensor drows_NH;
  at::Tensor dweights_N;
};
// Adds to `gradients`. `rows` is asked for the input rows once dz is known, so that the rows need
// not be alive together with the gradient of the output.
ExpertsGradients ExpertsBackward(const ExpertParameters& weights, at::Tensor dy_NH,
                                 const std::function<at::Tensor()>& rows, at::Tensor z_N2F,
                                 const at::Tensor& weights_N,
                                 const std::vector<int64_t>& rows_per_expert,
                                 const ExpertParameters& gradients);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_EXPERTS_H_
