#include "worker/trainer/models/memory_plan.h"

#include <algorithm>

#include "worker/trainer/models/weight_names.h"

namespace switchyard {
namespace {

constexpr int64_t kFp32Bytes = 4;
constexpr int64_t kIdBytes = 4;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a MoE layer's decision is, kept in every mode: the router's logits; of each token copy its
// expert, its row and its weight; where the rows of each expert begin.
int64_t DecisionBytes(const ModelConfig& c, int64_t tokens, int64_t weight_bytes) {
  return tokens * (c.num_experts * weight_bytes + c.top_k * (2 * kIdBytes + kFp32Bytes)) +
         (c.num_experts + 1) * kIdBytes;
}

// What the forward keeps of one layer for T tokens. See design.md 5: the residual inputs of both
// halves, q, k and v before their norms, the attention's output and log-sum-exp, and the experts'
// or the dense MLP's gate and up.
int64_t LeanLayerBytes(const ModelConfig& c, int64_t layer, int64_t tokens, int64_t weight_bytes) {
  const int64_t qkv = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim;
  int64_t bytes = tokens * weight_bytes * (2 * c.hidden_size + qkv + c.num_heads * c.head_dim) +
                  tokens * kFp32Bytes * c.num_heads;
  if (c.IsMoeLayer(layer)) {
    bytes += DecisionBytes(c, tokens, weight_bytes);
    bytes += tokens * c.top_k * weight_bytes * 2 * c.moe_intermediate_size;
  } else {
    bytes += tokens * weight_bytes * 2 * c.intermediate_size;
  }
  return bytes;
}

// What full recomputation keeps of one layer: its input and the decision.
int64_t BlockInputBytes(const ModelConfig& c, int64_t layer, int64_t tokens, int64_t weight_bytes) {
  int64_t bytes = tokens * weight_bytes * c.hidden_size;
  if (c.IsMoeLayer(layer)) bytes += DecisionBytes(c, tokens, weight_bytes);
  return bytes;
}

int64_t Activations(const ModelConfig& c, const MemoryPlanInput& in) {
  const int64_t tokens = in.microbatch_tokens;
  const int64_t residual = tokens * in.weight_bytes * c.hidden_size;
  int64_t total = residual;  // the head's input
  int64_t largest = 0;
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    const int64_t lean = LeanLayerBytes(c, layer, tokens, in.weight_bytes);
    largest = std::max(largest, lean);
    int64_t kept = in.full_recompute ? BlockInputBytes(c, layer, tokens, in.weight_bytes) : lean;
    if (in.offload) kept -= residual;
    total += kept;
  }
  if (!in.full_recompute) return total;
  // The block that is computed again; offloaded inputs of it and of the one that comes next.
  return total + largest + (in.offload ? 2 * residual : 0);
}

// Short-lived tensors of the widest block and of the loss.
int64_t Workspace(const ModelConfig& c, const MemoryPlanInput& in) {
  const int64_t t = in.microbatch_tokens;
  // Rows received, their gradient, the hidden activation and the gradient of gate and up.
  const int64_t moe = c.NumMoeLayers() == 0 ? 0
                                            : t * c.top_k * in.weight_bytes *
                                                  (2 * c.hidden_size + 4 * c.moe_intermediate_size);
  const int64_t dense = t * in.weight_bytes * (2 * c.hidden_size + 4 * c.intermediate_size);
  const int64_t attention =
      t * in.weight_bytes * 2 * (c.num_heads + 2 * c.num_kv_heads) * c.head_dim;
  const int64_t chunk = std::min(
      t, in.loss_chunk_tokens > 0 ? in.loss_chunk_tokens : DefaultLossChunkTokens(c, in.on_gpu));
  const int64_t loss =
      chunk * c.vocab_size * (kFp32Bytes + in.weight_bytes) + t * in.weight_bytes * c.hidden_size;
  return std::max({moe, dense, attention, loss});
}

}  // namespace

int64_t DefaultLossChunkTokens(const ModelConfig& config, bool on_gpu) {
  constexpr int64_t kCpuLogits = int64_t{16} << 20;
  constexpr int64_t kGpuLogits = int64_t{160} << 20;
  constexpr int64_t kTile = 128;  // rows of the products' tiles
  const int64_t vocab = std::max<int64_t>(1, config.vocab_size);
  const int64_t tokens = on_gpu ? kGpuLogits / vocab / kTile * kTile : kCpuLogits / vocab;
  return std::max<int64_t>(256, tokens);
}

MemoryPlan PlanMemory(const ModelConfig& config, const MemoryPlanInput& input) {
  const int64_t dense_shards = input.world_size / input.dp_replicate_size;
  const int64_t expert_shards = dense_shards / input.ep_size;
  int64_t shard = 0;
  int64_t cut = 0;  // elements of the buckets that are cut over several ranks
  int64_t largest_dense = 0;
  int64_t largest_expert = 0;
  for (const BucketLayout& bucket : BuildBuckets(config, 0, config.num_experts / input.ep_size)) {
    const bool dense = bucket.kind == BucketKind::kDense;
    const int64_t shards = dense ? dense_shards : expert_shards;
    shard += CeilDiv(bucket.numel, shards);
    if (shards == 1) continue;
    cut += bucket.numel;
    int64_t& largest = dense ? largest_dense : largest_expert;
    largest = std::max(largest, bucket.numel);
  }

  MemoryPlan plan;
  plan.weights = shard * input.weight_bytes;
  plan.optimizer = shard * 2 * input.moment_bytes +
                   (input.weight_bytes == 2 && input.exact_master ? shard * 2 : 0);
  // An uncut bucket's gradients are added to the shard itself.
  plan.gradients = (shard + cut) * input.gradient_bytes;
  plan.activations = Activations(config, input);
  // Gathered: two of each kind, while the next is fetched, or all of them.
  const int64_t gathered =
      input.reshard_after_forward ? std::min(cut, 2 * (largest_dense + largest_expert)) : cut;
  plan.buffers = Workspace(config, input) + gathered * input.weight_bytes;
  return plan;
}

}  // namespace switchyard
