// Bytes that one rank needs, before anything is allocated. Pure and torch-free: the coordinator's
// PlanJob and the trainer's start print the same numbers.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_MEMORY_PLAN_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_MEMORY_PLAN_H_

#include <cstdint>

#include "worker/trainer/models/model_config.h"

namespace switchyard {

struct MemoryPlanInput {
  int64_t world_size = 1;
  int64_t ep_size = 1;
  int64_t dp_replicate_size = 1;
  int64_t microbatch_tokens = 0;  // local_batch_size x row length
  int64_t microbatches = 0;       // of a step, on one rank; 0: unknown, several
  int64_t weight_bytes = 4;       // of one weight in training: 4 fp32, 2 bf16
  int64_t moment_bytes = 4;
  int64_t gradient_bytes = 4;
  bool exact_master = true;  // of bf16 weights: 2 bytes more
  bool full_recompute = false;
  bool offload = false;  // with full_recompute: block inputs on the host
  bool on_gpu = false;
  bool reshard_after_forward = true;
  int64_t loss_chunk_tokens = 0;  // 0: the trainer's default
};

struct MemoryPlan {
  int64_t weights = 0;      // this rank's shards
  int64_t gradients = 0;    // shards and the buckets being accumulated
  int64_t optimizer = 0;    // moments, and the 16-bit remainder of bf16 weights
  int64_t activations = 0;  // saved by the forward of one micro-batch
  int64_t buffers = 0;      // gathered buckets, dispatch buffers, logits chunk, libraries' own
  // Bytes of the above that are never there together with the rest: on a GPU gradients come into
  // being while activations go.
  int64_t overlap = 0;
  int64_t total() const {
    return weights + gradients + optimizer + activations + buffers - overlap;
  }
};

// Tokens whose logits exist at a time when nothing else is asked for. On the CPU, fp32 logits of
// about 64 MiB; on a GPU, bf16 logits of about 300 MiB, which keep its products busy; at least 256
// tokens.
int64_t DefaultLossChunkTokens(const ModelConfig& config, bool on_gpu);

// ep_size must divide world_size and num_experts (checked by the callers' Validate).
// On one GPU the step is followed from moment to moment; measured peaks of tensors lie within 1 %
// (docs/benchmarks.md). Elsewhere everything is taken to be there at once.
// Received rows are taken as balanced over the ranks. Full buckets of gradients are counted as if
// all of them were waiting for their sum over the ranks, which is the worst moment of a step.
MemoryPlan PlanMemory(const ModelConfig& config, const MemoryPlanInput& input);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_MEMORY_PLAN_H_
