#include "worker/trainer/models/block.h"

#include <ATen/ATen.h>

#include <vector>

#include "gtest/gtest.h"
#include "worker/trainer/models/memory_plan.h"
#include "worker/trainer/models/models_test_support.h"
#include "worker/trainer/models/rope_frequencies.h"
#include "worker/trainer/parallel/local_dispatcher.h"

namespace switchyard {
namespace {

int64_t Bytes(const std::vector<at::Tensor>& tensors) {
  int64_t sum = 0;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined()) sum += static_cast<int64_t>(tensor.nbytes());
  }
  return sum;
}

// Everything that `saved` keeps alive. A permutation of the token copies takes two ids per copy.
int64_t SavedBytes(const BlockSaved& saved) {
  const MoeSaved& moe = saved.moe;
  int64_t bytes =
      Bytes({saved.x_TH, saved.middle_TH, saved.attention.qkv_TP, saved.attention.core.out_TNd,
             saved.attention.core.log_sum_exp_TN, saved.mlp.z_T2F, moe.ids_TK, moe.weights_N,
             moe.z_N2F, moe.choice.probs_TE, moe.choice.weights_TK});
  if (moe.plan != nullptr) bytes += 2 * 8 * moe.plan->num_rows;
  return bytes;
}

// What the blocks of the toy model keep of one micro-batch.
int64_t KeptByAllBlocks(bool recompute, at::ScalarType type, int64_t tokens) {
  const ModelConfig config = ToyConfig();
  LocalParameterStore store(BuildBuckets(config, 0, config.num_experts), type);
  DrawWeights(8, &store);
  LocalDispatcher dispatcher(config.num_experts);
  const DecoderBatch batch = DrawBatch(1, {tokens}, config.vocab_size);
  const RopeFrequencies rope = ComputeRopeFrequencies(config.rope, config.head_dim);
  const BatchContext context = {
      config, dispatcher, false,
      ops::MakeRopeAngles(batch.positions_T, rope.inverse_r, rope.attention_scale, type),
      ops::MakeAttentionPlan(batch.cu_seqlens)};
  at::Tensor x = at::randn({tokens, config.hidden_size}).to(type);
  int64_t kept = 0;
  int next = 1;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    BlockBuckets buckets;
    buckets.dense = next++;
    buckets.dense_layout = &store.buckets()[buckets.dense];
    if (config.IsMoeLayer(layer)) {
      buckets.experts = next++;
      buckets.experts_layout = &store.buckets()[buckets.experts];
    }
    BlockSaved saved;
    x = Block(layer, buckets, store).Forward(context, x, recompute, &saved, nullptr);
    kept += SavedBytes(saved);
  }
  return kept;
}

TEST(BlockTest, KeepsWhatTheMemoryPlanSays) {
  constexpr int64_t kTokens = 37;
  for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    MemoryPlanInput input;
    input.microbatch_tokens = kTokens;
    input.weight_bytes = type == at::kFloat ? 4 : 2;
    // Besides the blocks' part, the plan counts the input of the head.
    const int64_t head = kTokens * input.weight_bytes * ToyConfig().hidden_size;
    EXPECT_EQ(PlanMemory(ToyConfig(), input).activations,
              head + KeptByAllBlocks(/*recompute=*/false, type, kTokens));
    input.full_recompute = true;
    const int64_t plan = PlanMemory(ToyConfig(), input).activations;
    const int64_t kept = head + KeptByAllBlocks(/*recompute=*/true, type, kTokens);
    EXPECT_GT(plan, kept);  // by one recomputed layer
    EXPECT_LT(kept, KeptByAllBlocks(/*recompute=*/false, type, kTokens) / 2);
  }
}

}  // namespace
}  // namespace switchyard
