// Floating-point operations that a model's arithmetic needs, for utilisation figures. Torch-free.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_FLOPS_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_FLOPS_H_

#include <cstdint>

#include "worker/trainer/models/model_config.h"

namespace switchyard {

// Of one forward, a multiply-add counted as two: matrix products of all layers and the head, and
// attention over `causal_pairs`, the (query, key) pairs inside documents, n (n + 1) / 2 for each of
// n tokens. Forward and backward together are three times as much; what is recomputed is not work.
double ForwardFlops(const ModelConfig& config, int64_t tokens, int64_t causal_pairs);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_FLOPS_H_
