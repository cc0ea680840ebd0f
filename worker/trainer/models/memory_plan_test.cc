#include "worker/trainer/models/memory_plan.h"

#include "gtest/gtest.h"
#include "worker/trainer/models/weight_names.h"

namespace switchyard {
namespace {

ModelConfig Small() {
  ModelConfig c;
  c.vocab_size = 1000;
  c.hidden_size = 64;
  c.intermediate_size = 128;
  c.num_layers = 4;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.moe_intermediate_size = 32;
  c.num_experts = 8;
  c.top_k = 2;
  c.mlp_only_layers = {0};
  return c;
}

MemoryPlanInput OneRank() {
  MemoryPlanInput input;
  input.microbatch_tokens = 512;
  return input;
}

TEST(MemoryPlanTest, OneRankHoldsEverythingOnce) {
  const int64_t parameters = CountParameters(Small());
  const MemoryPlan plan = PlanMemory(Small(), OneRank());
  EXPECT_EQ(plan.weights, 4 * parameters);
  EXPECT_EQ(plan.gradients, 4 * parameters);
  EXPECT_EQ(plan.optimizer, 8 * parameters);
  EXPECT_EQ(plan.total(),
            plan.weights + plan.gradients + plan.optimizer + plan.activations + plan.buffers);
}

TEST(MemoryPlanTest, HalfPrecisionKeepsAnExactMasterInSixteenMoreBits) {
  const int64_t parameters = CountParameters(Small());
  MemoryPlanInput input = OneRank();
  input.weight_bytes = 2;
  EXPECT_EQ(PlanMemory(Small(), input).weights, 2 * parameters);
  EXPECT_EQ(PlanMemory(Small(), input).optimizer, (8 + 2) * parameters);
}

TEST(MemoryPlanTest, EightBytesAParameterWithoutMasterAndWithHalfPrecisionEverywhere) {
  MemoryPlanInput input = OneRank();
  input.weight_bytes = 2;
  input.moment_bytes = 2;
  input.gradient_bytes = 2;
  input.exact_master = false;
  const MemoryPlan plan = PlanMemory(Small(), input);
  EXPECT_EQ(plan.weights + plan.gradients + plan.optimizer, 8 * CountParameters(Small()));
}

// Qwen3-30B-A3B's shape, cut to some layers.
ModelConfig Cut(int64_t layers) {
  ModelConfig c;
  c.vocab_size = 151936;
  c.hidden_size = 2048;
  c.num_layers = layers;
  c.num_heads = 32;
  c.num_kv_heads = 4;
  c.head_dim = 128;
  c.moe_intermediate_size = 768;
  c.num_experts = 128;
  c.top_k = 8;
  return c;
}

// Peaks of tensors that an H100 measured (docs/benchmarks.md).
TEST(MemoryPlanTest, OneGpuNeedsWhatWasMeasuredThere) {
  struct Case {
    int64_t layers, rows;
    bool exact_master, full_recompute, offload;
    double measured_gib;
  };
  const Case cases[] = {{4, 1, false, false, false, 23.26}, {4, 2, false, false, false, 23.65},
                        {4, 4, false, false, false, 24.64}, {4, 8, false, false, false, 27.87},
                        {4, 1, true, false, false, 29.06},  {4, 8, true, false, false, 33.67},
                        {4, 8, false, true, false, 26.62},  {4, 8, false, true, true, 26.62},
                        {8, 4, false, true, false, 43.21},  {4, 4, true, true, false, 30.44}};
  for (const Case& c : cases) {
    MemoryPlanInput input;
    input.microbatch_tokens = c.rows * 4096;
    input.microbatches = 1;
    input.weight_bytes = input.moment_bytes = input.gradient_bytes = 2;
    input.exact_master = c.exact_master;
    input.full_recompute = c.full_recompute;
    input.offload = c.offload;
    input.on_gpu = true;
    const double planned =
        static_cast<double>(PlanMemory(Cut(c.layers), input).total()) / (1 << 30);
    EXPECT_NEAR(planned / c.measured_gib, 1, 0.01)
        << c.layers << " layers, " << c.rows << " rows, " << planned << " GiB";
    input.microbatches = 2;
    const MemoryPlan several = PlanMemory(Cut(c.layers), input);
    EXPECT_GE(several.overlap, 0);
    EXPECT_GE(static_cast<double>(several.total()) / (1 << 30), planned);
  }
}

TEST(MemoryPlanTest, ShardsAddUpToTheModel) {
  for (int64_t ep : {1, 2, 4}) {
    MemoryPlanInput input = OneRank();
    input.world_size = 4;
    input.ep_size = ep;
    const int64_t sum = 4 * PlanMemory(Small(), input).weights;
    EXPECT_GE(sum, 4 * CountParameters(Small())) << ep;
    EXPECT_LE(sum, 4 * CountParameters(Small()) + 4 * 4 * 10) << ep;  // padding of ten buckets
  }
}

TEST(MemoryPlanTest, ReplicasHoldTheirOwnCopies) {
  MemoryPlanInput input = OneRank();
  input.world_size = 4;
  const int64_t sharded = PlanMemory(Small(), input).weights;
  input.dp_replicate_size = 2;
  EXPECT_NEAR(PlanMemory(Small(), input).weights, 2 * sharded, 4 * 10);
}

TEST(MemoryPlanTest, OnlyBucketsThatAreCutNeedWholeCopies) {
  MemoryPlanInput input = OneRank();
  input.world_size = 4;
  input.ep_size = 4;  // experts lie uncut on their rank
  const MemoryPlan ep = PlanMemory(Small(), input);
  int64_t dense = 0, experts = 0;
  for (const BucketLayout& bucket : BuildBuckets(Small(), 0, 2)) {
    (bucket.kind == BucketKind::kDense ? dense : experts) += bucket.numel;
  }
  EXPECT_NEAR(ep.gradients, 4 * (dense / 4 + dense + experts), 4 * 10);
  input.reshard_after_forward = false;
  EXPECT_GE(PlanMemory(Small(), input).buffers, ep.buffers);
}

TEST(MemoryPlanTest, RanksThatPushRowsKeepBuffersForThem) {
  MemoryPlanInput input = OneRank();
  input.world_size = 4;
  input.ep_size = 4;
  input.weight_bytes = 2;
  const MemoryPlan cpu = PlanMemory(Small(), input);
  input.on_gpu = true;
  const MemoryPlan push = PlanMemory(Small(), input);
  // A quarter more rows of gate and up in each MoE layer.
  EXPECT_GT(push.activations, cpu.activations);
  EXPECT_LT(push.activations, cpu.activations * 5 / 4);
  input.weight_bytes = 4;  // by collectives
  const MemoryPlan collective = PlanMemory(Small(), input);
  input.ep_size = 1;
  EXPECT_EQ(collective.activations, PlanMemory(Small(), input).activations);
}

TEST(MemoryPlanTest, EightRanksOfQwen3KeepOneGigabyteForWhatTheyPush) {
  MemoryPlanInput input = OneRank();
  input.world_size = 8;
  input.ep_size = 8;
  input.weight_bytes = 2;
  input.on_gpu = true;
  const MemoryPlan few = PlanMemory(Cut(2), input);
  input.microbatch_tokens += 8192;
  const MemoryPlan more = PlanMemory(Cut(2), input);
  // 2 x 8192 x 7 records of 4096 + 64 bytes and as many sums of 4096 + 32.
  EXPECT_GE(more.buffers - few.buffers, 950'534'144);
}

TEST(MemoryPlanTest, RecomputingKeepsLess) {
  MemoryPlanInput input = OneRank();
  const int64_t lean = PlanMemory(Small(), input).activations;
  input.full_recompute = true;
  const int64_t full = PlanMemory(Small(), input).activations;
  EXPECT_LT(full, lean / 2);
  EXPECT_GE(full, 512 * 4 * 64 * 5);  // five residual streams at least
  input.offload = true;
  // Of four layers' inputs, two are on the device at a time.
  EXPECT_EQ(PlanMemory(Small(), input).activations, full - 2 * 512 * 4 * 64);
}

TEST(MemoryPlanTest, ActivationsGrowWithTheMicrobatchOnly) {
  MemoryPlanInput input = OneRank();
  const MemoryPlan one = PlanMemory(Small(), input);
  input.microbatch_tokens *= 2;
  const MemoryPlan two = PlanMemory(Small(), input);
  // But for where the rows of the experts begin, in three layers.
  EXPECT_EQ(two.activations, 2 * one.activations - 3 * (8 + 1) * 4);
  EXPECT_EQ(two.weights, one.weights);
}

TEST(MemoryPlanTest, LogitsNeverExistWhole) {
  MemoryPlanInput input = OneRank();
  input.microbatch_tokens = 1 << 20;
  input.loss_chunk_tokens = 64;
  ModelConfig config = Small();
  config.vocab_size = 1000000;
  EXPECT_LT(PlanMemory(config, input).buffers, (int64_t{1} << 20) * 1000000);
  EXPECT_EQ(DefaultLossChunkTokens(config, false), 256);
  EXPECT_EQ(DefaultLossChunkTokens(Small(), false), (16 << 20) / 1000);
  config.vocab_size = 151936;
  EXPECT_EQ(DefaultLossChunkTokens(config, true), 1024);
}

}  // namespace
}  // namespace switchyard
