// Our buckets <-> the published checkpoint's names. Torch-free.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_WEIGHT_NAMES_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_WEIGHT_NAMES_H_

#include <cstdint>
#include <vector>

#include "worker/trainer/models/model_config.h"
#include "worker/trainer/parallel/bucket_layout.h"

namespace switchyard {

// The buckets of a rank that holds experts [expert_begin, expert_end), in forward order:
//   embedding | layers.0.dense | layers.0.experts | layers.1.dense | ... | head
// "head" holds model.norm.weight and, untied, lm_head.weight. A dense MLP's matrices are in its
// layer's dense bucket; a MoE layer has an experts bucket after its dense one.
// Inside a dense bucket q, k and v are adjacent (one [(nh + 2 nkv) d, H] matrix), as are their
// biases, and gate and up. Inside an experts bucket: gate e0, up e0, gate e1, up e1, ..., then
// down e0, down e1, ...: the views [experts, 2 Im, H] and [experts, H, Im].
std::vector<BucketLayout> BuildBuckets(const ModelConfig& config, int64_t expert_begin,
                                       int64_t expert_end);

// All tensors a checkpoint of this model must hold: the slots of BuildBuckets(config, 0,
// num_experts). Total elements of them, and of those one token uses (top_k experts a layer).
int64_t CountParameters(const ModelConfig& config);
int64_t CountActiveParameters(const ModelConfig& config);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_WEIGHT_NAMES_H_
