#include "worker/trainer/models/init.h"

#include <ATen/ATen.h>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "worker/trainer/models/models_test_support.h"
#include "worker/trainer/models/weight_names.h"

namespace switchyard {
namespace {

at::Tensor Whole(const ModelConfig& config, const BucketLayout& bucket, uint64_t seed) {
  at::Tensor flat = at::empty({bucket.numel}, at::kFloat);
  InitializeBucket(config, bucket, seed, 0, flat);
  return flat;
}

TEST(InitTest, ShardsAreSlicesOfTheWhole) {
  const ModelConfig config = ToyConfig();
  for (const BucketLayout& bucket : BuildBuckets(config, 0, 5)) {
    const at::Tensor whole = Whole(config, bucket, 7);
    const int64_t shard = (bucket.numel + 2) / 3;
    at::Tensor padded = at::full({3 * shard}, 9.0f);
    for (int64_t i = 0; i < 3; ++i) {
      InitializeBucket(config, bucket, 7, i * shard, padded.narrow(0, i * shard, shard));
    }
    EXPECT_TRUE(at::equal(padded.narrow(0, 0, bucket.numel), whole)) << bucket.name;
    EXPECT_EQ(padded.narrow(0, bucket.numel, 3 * shard - bucket.numel).abs().sum().item<double>(),
              0);
  }
}

TEST(InitTest, ARankWithSomeExpertsDrawsTheSameExperts) {
  const ModelConfig config = ToyConfig();
  const BucketLayout all = BuildBuckets(config, 0, 5)[2];
  const BucketLayout some = BuildBuckets(config, 3, 5)[2];
  ASSERT_EQ(some.name, "layers.0.experts");
  const at::Tensor whole = Whole(config, all, 7);
  const at::Tensor part = Whole(config, some, 7);
  const TensorSlot& mine = some.slots.front();  // expert 3's gate
  for (const TensorSlot& slot : all.slots) {
    if (slot.name != mine.name) continue;
    EXPECT_TRUE(at::equal(whole.narrow(0, slot.offset, slot.numel),
                          part.narrow(0, mine.offset, mine.numel)));
    return;
  }
  FAIL() << mine.name;
}

TEST(InitTest, FollowsTransformersRules) {
  ModelConfig config = ToyConfig();
  config.attention_bias = true;
  config.pad_token_id = 3;
  config.initializer_range = 0.5;
  for (const BucketLayout& bucket : BuildBuckets(config, 0, 5)) {
    const at::Tensor flat = Whole(config, bucket, 7);
    for (const TensorSlot& slot : bucket.slots) {
      const at::Tensor values = flat.narrow(0, slot.offset, slot.numel);
      if (absl::EndsWith(slot.name, "norm.weight")) {
        EXPECT_TRUE(at::equal(values, at::ones_like(values))) << slot.name;
      } else if (absl::EndsWith(slot.name, ".bias")) {
        EXPECT_TRUE(at::equal(values, at::zeros_like(values))) << slot.name;
      } else {
        EXPECT_NEAR(values.std().item<double>(), 0.5, 0.15) << slot.name;
      }
    }
  }
  const BucketLayout embedding = BuildBuckets(config, 0, 5)[0];
  const at::Tensor rows = Whole(config, embedding, 7).view({29, 12});
  EXPECT_EQ(rows[3].abs().max().item<double>(), 0);
  EXPECT_GT(rows[2].abs().max().item<double>(), 0);
}

TEST(InitTest, DrawsAStandardNormalDistribution) {
  ModelConfig config = ToyConfig();
  config.vocab_size = 20000;
  config.initializer_range = 1.0;
  const at::Tensor values = Whole(config, BuildBuckets(config, 0, 5)[0], 1).to(at::kDouble);
  EXPECT_NEAR(values.mean().item<double>(), 0, 0.01);
  EXPECT_NEAR(values.var().item<double>(), 1, 0.01);
  EXPECT_NEAR(values.pow(4).mean().item<double>(), 3, 0.1);
  EXPECT_NEAR((values > 1.959964).to(at::kDouble).mean().item<double>(), 0.025, 0.002);
  // Neighbours are independent.
  const int64_t n = values.numel() - 1;
  EXPECT_NEAR((values.narrow(0, 0, n) * values.narrow(0, 1, n)).mean().item<double>(), 0, 0.01);
}

TEST(InitTest, SeedsAndNamesGiveDifferentValues) {
  const ModelConfig config = ToyConfig();
  const std::vector<BucketLayout> buckets = BuildBuckets(config, 0, 5);
  EXPECT_FALSE(at::equal(Whole(config, buckets[0], 1), Whole(config, buckets[0], 2)));
  const at::Tensor experts = Whole(config, buckets[2], 1);
  const TensorSlot& gate = buckets[2].slots[0];
  const TensorSlot& up = buckets[2].slots[1];
  EXPECT_FALSE(at::equal(experts.narrow(0, gate.offset, gate.numel),
                         experts.narrow(0, up.offset, up.numel)));
}

TEST(InitTest, OperationsOfADeviceDrawTheSameNumbers) {
  ModelConfig config = ToyConfig();
  config.attention_bias = true;
  config.pad_token_id = 3;
  for (const BucketLayout& bucket : BuildBuckets(config, 0, 5)) {
    const at::Tensor whole = Whole(config, bucket, 7);
    for (int64_t begin : {int64_t{0}, bucket.numel / 3}) {
      at::Tensor part = at::full({bucket.numel - begin + 5}, 9.0, at::kFloat);  // with padding
      InitializeBucketByOperations(config, bucket, 7, begin, part);
      const at::Tensor real = part.narrow(0, 0, bucket.numel - begin);
      EXPECT_TRUE(at::allclose(real, whole.narrow(0, begin, bucket.numel - begin), 1e-6, 1e-9))
          << bucket.name;
      EXPECT_EQ(part.narrow(0, bucket.numel - begin, 5).abs().max().item<double>(), 0);
    }
  }
}

TEST(InitTest, HalfPrecisionIsTheRoundedValue) {
  const ModelConfig config = ToyConfig();
  const BucketLayout bucket = BuildBuckets(config, 0, 5)[0];
  at::Tensor half = at::empty({bucket.numel}, at::kBFloat16);
  InitializeBucket(config, bucket, 7, 0, half);
  EXPECT_TRUE(at::equal(half, Whole(config, bucket, 7).to(at::kBFloat16)));
}

}  // namespace
}  // namespace switchyard
