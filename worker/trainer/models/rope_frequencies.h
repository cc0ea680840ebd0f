// The frequencies of a model's rotary embedding, as Transformers computes them.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_ROPE_FREQUENCIES_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_ROPE_FREQUENCIES_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/trainer/models/model_config.h"

namespace switchyard {

struct RopeFrequencies {
  at::Tensor inverse_r;          // fp32 [head_dim / 2]: radians per position
  double attention_scale = 1.0;  // multiplies cosines and sines
};

// Every type of models.md 1.2. In fp32 and in Transformers' order of operations, so that far
// positions see the very angles that the model was trained with.
RopeFrequencies ComputeRopeFrequencies(const RopeConfig& rope, int64_t head_dim);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_ROPE_FREQUENCIES_H_
