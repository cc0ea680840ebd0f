#include "worker/trainer/models/memory_plan.h"

#include <algorithm>
#include <vector>

#include "worker/trainer/models/weight_names.h"

namespace switchyard {
namespace {

constexpr int64_t kFp32Bytes = 4;
constexpr int64_t kIdBytes = 4;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether token rows are pushed between GPUs (parallel/push_dispatcher.h).
bool PushesRows(const MemoryPlanInput& in) {
  return in.on_gpu && in.ep_size > 1 && in.weight_bytes == 2;
}

// Rows of the buffers by expert: as many as the token copies, or the push dispatcher's first
// budget.
int64_t ExpertRows(const ModelConfig& c, const MemoryPlanInput& in) {
  const int64_t copies = in.microbatch_tokens * c.top_k;
  return PushesRows(in) ? CeilDiv(copies * 5, 4) : copies;
}

// What a MoE layer's decision is, kept in every mode: the router's logits; of each token copy its
// expert, its row and its weight; where the rows of each expert begin. Pushed rows: the number of a
// token's record on each rank, its copies' places, the rows of each record that may be received.
int64_t DecisionBytes(const ModelConfig& c, const MemoryPlanInput& in) {
  const int64_t tokens = in.microbatch_tokens;
  int64_t bytes =
      tokens * (c.num_experts * in.weight_bytes + c.top_k * (2 * kIdBytes + kFp32Bytes)) +
      (c.num_experts + 1) * kIdBytes;
  if (PushesRows(in)) {
    bytes += tokens * kIdBytes * (in.ep_size + c.top_k + (in.ep_size - 1) * c.top_k);
  }
  return bytes;
}

// What the forward keeps of one layer for T tokens. See design.md 5: the residual inputs of both
// halves, q, k and v before their norms, the attention's output and log-sum-exp, and the experts'
// or the dense MLP's gate and up.
int64_t LeanLayerBytes(const ModelConfig& c, int64_t layer, const MemoryPlanInput& in) {
  const int64_t tokens = in.microbatch_tokens, weight_bytes = in.weight_bytes;
  const int64_t qkv = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim;
  int64_t bytes = tokens * weight_bytes * (2 * c.hidden_size + qkv + c.num_heads * c.head_dim) +
                  tokens * kFp32Bytes * c.num_heads;
  if (c.IsMoeLayer(layer)) {
    bytes += DecisionBytes(c, in);
    bytes += ExpertRows(c, in) * weight_bytes * 2 * c.moe_intermediate_size;
  } else {
    bytes += tokens * weight_bytes * 2 * c.intermediate_size;
  }
  return bytes;
}

// What full recomputation keeps of one layer: its input and the decision.
int64_t BlockInputBytes(const ModelConfig& c, int64_t layer, const MemoryPlanInput& in) {
  int64_t bytes = in.microbatch_tokens * in.weight_bytes * c.hidden_size;
  if (c.IsMoeLayer(layer)) bytes += DecisionBytes(c, in);
  return bytes;
}

int64_t Activations(const ModelConfig& c, const MemoryPlanInput& in) {
  const int64_t residual = in.microbatch_tokens * in.weight_bytes * c.hidden_size;
  int64_t total = residual;  // the head's input
  int64_t largest = 0;
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    const int64_t lean = LeanLayerBytes(c, layer, in);
    largest = std::max(largest, lean);
    int64_t kept = in.full_recompute ? BlockInputBytes(c, layer, in) : lean;
    if (in.offload) kept -= residual;
    total += kept;
  }
  if (!in.full_recompute) return total;
  // The block that is computed again; offloaded inputs of it and of the one that comes next.
  return total + largest + (in.offload ? 2 * residual : 0);
}

int64_t ChunkTokens(const ModelConfig& c, const MemoryPlanInput& in) {
  return std::min(in.microbatch_tokens, in.loss_chunk_tokens > 0
                                            ? in.loss_chunk_tokens
                                            : DefaultLossChunkTokens(c, in.on_gpu));
}

// Bytes on top of weights and optimizer state, from moment to moment of a step on one GPU, where
// nothing is gathered, a bucket's gradients are allocated when its backward begins, and what a
// block saved is freed when it is done.
class GpuStep {
 public:
  GpuStep(const ModelConfig& config, const MemoryPlanInput& input)
      : c_(config), in_(input), residual_(Rows(config.hidden_size)) {}

  // Short-lived tensors of the widest moment.
  int64_t LargestWorkspace() const {
    int64_t largest = Head();
    for (int64_t layer = 0; layer < c_.num_layers; ++layer) {
      largest = std::max({largest, BlockForward(layer), BlockBackward(layer)});
    }
    return largest + kLibraries;
  }

  int64_t Peak(const std::vector<BucketLayout>& buckets) const {
    std::vector<int64_t> of_layer(c_.num_layers, 0);
    int64_t head = 0, all = 0;
    for (const BucketLayout& bucket : buckets) {
      const int64_t bytes = bucket.numel * in_.gradient_bytes;
      all += bytes;
      if (bucket.layer >= 0) of_layer[bucket.layer] += bytes;
    }
    head = buckets.back().numel * in_.gradient_bytes;
    if (c_.tie_word_embeddings) head += buckets.front().numel * in_.gradient_bytes;
    // Of the micro-batches before, all gradients are there already.
    const bool all_there = in_.microbatches != 1;

    int64_t saved = 0, peak = 0;
    for (int64_t layer = 0; layer < c_.num_layers; ++layer) {
      // What full recomputation leaves out is not there in the forward either, but for one block.
      const int64_t lean = Lean(layer);
      peak = std::max(peak, (all_there ? all : 0) + saved + lean + BlockForward(layer));
      saved += Kept(layer);
    }
    int64_t gradients = all_there ? all : head;
    peak = std::max(peak, gradients + saved + residual_ + Head());
    for (int64_t layer = c_.num_layers - 1; layer >= 0; --layer) {
      if (!all_there) gradients += of_layer[layer];
      saved -= Kept(layer);
      const int64_t prefetched = in_.offload && layer > 0 ? residual_ : 0;
      peak = std::max(
          peak, gradients + saved + Lean(layer) + prefetched + residual_ + BlockBackward(layer));
    }
    return std::max(peak, all + 2 * residual_) + kLibraries;
  }

 private:
  // cuBLAS's workspace, partial sums, the allocator's rounding.
  static constexpr int64_t kLibraries = int64_t{40} << 20;
  // cuDNN's attention backward, for each token, head and element of a head.
  static constexpr int64_t kAttentionWorkspace = 12;

  int64_t Rows(int64_t width) const { return in_.microbatch_tokens * in_.weight_bytes * width; }
  int64_t RoutedRows(int64_t width) const { return ExpertRows(c_, in_) * in_.weight_bytes * width; }
  int64_t Lean(int64_t layer) const { return LeanLayerBytes(c_, layer, in_); }
  int64_t Kept(int64_t layer) const {
    if (!in_.full_recompute) return Lean(layer);
    return BlockInputBytes(c_, layer, in_) - (in_.offload ? residual_ : 0);
  }
  int64_t Head() const {
    return ChunkTokens(c_, in_) * c_.vocab_size * in_.weight_bytes + 2 * residual_;
  }
  int64_t BlockForward(int64_t layer) const {
    // Experts: the rows, their hidden activation, their results.
    return c_.IsMoeLayer(layer) ? RoutedRows(2 * c_.hidden_size + c_.moe_intermediate_size)
                                : Rows(c_.hidden_size + c_.intermediate_size);
  }
  int64_t BlockBackward(int64_t layer) const {
    const int64_t qkv = (c_.num_heads + 2 * c_.num_kv_heads) * c_.head_dim;
    const int64_t q = c_.num_heads * c_.head_dim;
    const int64_t attention =
        in_.microbatch_tokens * q * kAttentionWorkspace + Rows(qkv + q) + residual_;
    // Rows, the gradients of gate and up, the hidden activation again; the residual's gradient.
    const int64_t feed_forward =
        residual_ + (c_.IsMoeLayer(layer)
                         ? RoutedRows(c_.hidden_size + 3 * c_.moe_intermediate_size)
                         : Rows(c_.hidden_size + 4 * c_.intermediate_size));
    return std::max(attention, feed_forward);
  }

  const ModelConfig& c_;
  const MemoryPlanInput& in_;
  const int64_t residual_;
};

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
  const int64_t loss = ChunkTokens(c, in) * c.vocab_size * (kFp32Bytes + in.weight_bytes) +
                       t * in.weight_bytes * c.hidden_size;
  return std::max({moe, dense, attention, loss});
}

// What ranks push to each other (kernels/dispatch/dispatch.h): two buffers of records, a row and
// its copies' places and weights, and two of sums, a row and its copies' gradients.
int64_t DispatchBuffers(const ModelConfig& c, const MemoryPlanInput& in) {
  if (!PushesRows(in)) return 0;
  const int64_t row = c.hidden_size * in.weight_bytes;
  const int64_t slots = CeilDiv(c.top_k, 4) * 4;
  const int64_t peers = in.ep_size - 1;
  const int64_t records = peers * (row + slots * (kIdBytes + kFp32Bytes));
  const int64_t sums = std::min(peers, c.top_k) * (row + slots * kFp32Bytes);
  return 2 * in.microbatch_tokens * (records + sums);
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
  const std::vector<BucketLayout> buckets =
      BuildBuckets(config, 0, config.num_experts / input.ep_size);
  for (const BucketLayout& bucket : buckets) {
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
  // What the ranks send to be summed arrives beside the gradient that is being reduced.
  const int64_t arriving = std::max(largest_dense, largest_expert) * input.gradient_bytes;
  const int64_t collectives = gathered * input.weight_bytes + arriving;
  plan.buffers = Workspace(config, input) + collectives;
  if (input.on_gpu) {
    const GpuStep step(config, input);
    plan.buffers = step.LargestWorkspace() + collectives + DispatchBuffers(config, input);
    if (input.world_size == 1) {
      plan.overlap = plan.gradients + plan.activations + plan.buffers - step.Peak(buckets);
    }
  }
  return plan;
}

}  // namespace switchyard
