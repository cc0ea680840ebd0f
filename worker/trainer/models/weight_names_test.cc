#include "worker/trainer/models/weight_names.h"

#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;

ModelConfig Qwen3Moe30B() {
  ModelConfig c;
  c.model_type = "qwen3_moe";
  c.vocab_size = 151936;
  c.hidden_size = 2048;
  c.intermediate_size = 6144;
  c.num_layers = 48;
  c.num_heads = 32;
  c.num_kv_heads = 4;
  c.head_dim = 128;
  c.moe_intermediate_size = 768;
  c.num_experts = 128;
  c.top_k = 8;
  return c;
}

ModelConfig Qwen3Moe235B() {
  ModelConfig c = Qwen3Moe30B();
  c.hidden_size = 4096;
  c.intermediate_size = 12288;
  c.num_layers = 94;
  c.num_heads = 64;
  c.moe_intermediate_size = 1536;
  return c;
}

ModelConfig Tiny() {
  ModelConfig c;
  c.vocab_size = 11;
  c.hidden_size = 4;
  c.intermediate_size = 6;
  c.num_layers = 2;
  c.num_heads = 2;
  c.num_kv_heads = 1;
  c.head_dim = 4;
  c.moe_intermediate_size = 3;
  c.num_experts = 2;
  c.top_k = 1;
  c.mlp_only_layers = {0};
  return c;
}

std::vector<std::string> Names(const BucketLayout& bucket) {
  std::vector<std::string> names;
  for (const TensorSlot& slot : bucket.slots) names.push_back(slot.name);
  return names;
}

TEST(WeightNamesTest, PublishedModelsHaveTheirTensorsAndBytes) {
  int64_t tensors = 0;
  int64_t elements = 0;
  for (const BucketLayout& bucket : BuildBuckets(Qwen3Moe30B(), 0, 128)) {
    tensors += static_cast<int64_t>(bucket.slots.size());
    for (const TensorSlot& slot : bucket.slots) elements += slot.numel;
  }
  EXPECT_EQ(tensors, 18867);
  EXPECT_EQ(2 * elements, 61064245248);
  EXPECT_EQ(CountParameters(Qwen3Moe30B()), 30532122624);
  EXPECT_EQ(CountParameters(Qwen3Moe235B()), 235093634560);
  EXPECT_EQ(CountActiveParameters(Qwen3Moe30B()), 30532122624 - int64_t{48} * 120 * 3 * 2048 * 768);
}

TEST(WeightNamesTest, BucketsComeInForwardOrder) {
  std::vector<std::string> names;
  for (const BucketLayout& bucket : BuildBuckets(Tiny(), 0, 2)) names.push_back(bucket.name);
  EXPECT_THAT(names, ElementsAre("embedding", "layers.0.dense", "layers.1.dense",
                                 "layers.1.experts", "head"));
}

TEST(WeightNamesTest, DenseLayerHoldsItsMlp) {
  const BucketLayout bucket = BuildBuckets(Tiny(), 0, 2)[1];
  EXPECT_THAT(
      Names(bucket),
      ElementsAre(
          "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight",
          "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight",
          "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.q_norm.weight",
          "model.layers.0.self_attn.k_norm.weight",
          "model.layers.0.post_attention_layernorm.weight", "model.layers.0.mlp.gate_proj.weight",
          "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"));
}

TEST(WeightNamesTest, BiasesAreAdjacentAfterTheirMatrices) {
  ModelConfig config = Tiny();
  config.attention_bias = true;
  const BucketLayout bucket = BuildBuckets(config, 0, 2)[1];
  EXPECT_EQ(bucket.slots[3].name, "model.layers.0.self_attn.v_proj.weight");
  EXPECT_EQ(bucket.slots[4].name, "model.layers.0.self_attn.q_proj.bias");
  EXPECT_EQ(bucket.slots[6].name, "model.layers.0.self_attn.v_proj.bias");
  EXPECT_EQ(bucket.slots[8].name, "model.layers.0.self_attn.o_proj.bias");
}

TEST(WeightNamesTest, ExpertsLieAsOneGateUpAndOneDownMatrix) {
  const BucketLayout bucket = BuildBuckets(Tiny(), 0, 2)[3];
  EXPECT_EQ(bucket.kind, BucketKind::kExpert);
  EXPECT_EQ(bucket.layer, 1);
  EXPECT_THAT(Names(bucket), ElementsAre("model.layers.1.mlp.experts.0.gate_proj.weight",
                                         "model.layers.1.mlp.experts.0.up_proj.weight",
                                         "model.layers.1.mlp.experts.1.gate_proj.weight",
                                         "model.layers.1.mlp.experts.1.up_proj.weight",
                                         "model.layers.1.mlp.experts.0.down_proj.weight",
                                         "model.layers.1.mlp.experts.1.down_proj.weight"));
  EXPECT_EQ(bucket.slots[4].offset, 2 * 2 * 3 * 4);
  EXPECT_THAT(bucket.slots[4].shape, ElementsAre(4, 3));
}

TEST(WeightNamesTest, ARankHoldsItsOwnExpertsOnly) {
  std::set<std::string> all;
  for (const BucketLayout& bucket : BuildBuckets(Tiny(), 0, 2)) {
    for (const std::string& name : Names(bucket)) all.insert(name);
  }
  std::set<std::string> both;
  for (int64_t rank = 0; rank < 2; ++rank) {
    const std::vector<BucketLayout> mine = BuildBuckets(Tiny(), rank, rank + 1);
    EXPECT_EQ(mine[3].slots.size(), 3u);
    for (const BucketLayout& bucket : mine) {
      for (const std::string& name : Names(bucket)) both.insert(name);
    }
  }
  EXPECT_EQ(all, both);
}

TEST(WeightNamesTest, SlotsCoverTheirBucketWithoutGaps) {
  ModelConfig config = Tiny();
  config.attention_bias = true;
  for (const BucketLayout& bucket : BuildBuckets(config, 0, 2)) {
    int64_t next = 0;
    for (const TensorSlot& slot : bucket.slots) {
      EXPECT_EQ(slot.offset, next) << slot.name;
      next += slot.numel;
    }
    EXPECT_EQ(bucket.numel, next) << bucket.name;
  }
}

TEST(WeightNamesTest, ATiedModelHasNoHead) {
  ModelConfig config = Tiny();
  EXPECT_THAT(Names(BuildBuckets(config, 0, 2).back()),
              ElementsAre("model.norm.weight", "lm_head.weight"));
  config.tie_word_embeddings = true;
  EXPECT_THAT(Names(BuildBuckets(config, 0, 2).back()), ElementsAre("model.norm.weight"));
}

}  // namespace
}  // namespace switchyard
