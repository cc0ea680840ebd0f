#include "worker/trainer/models/block.h"

#include <ATen/ATen.h>

#include "gtest/gtest.h"
#include "worker/trainer/models/memory_plan.h"
#include "worker/trainer/models/models_test_support.h"
#include "worker/trainer/models/saved_bytes_test_support.h"

namespace switchyard {
namespace {

TEST(BlockTest, KeepsWhatTheMemoryPlanSays) {
  constexpr int64_t kTokens = 37;
  for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    MemoryPlanInput input;
    input.microbatch_tokens = kTokens;
    input.weight_bytes = type == at::kFloat ? 4 : 2;
    // Besides the blocks' part, the plan counts the input of the head.
    const int64_t head = kTokens * input.weight_bytes * ToyConfig().hidden_size;
    EXPECT_EQ(PlanMemory(ToyConfig(), input).activations,
              head + KeptByAllBlocks(ToyConfig(), /*recompute=*/false, type, kTokens, at::kCPU));
    input.full_recompute = true;
    const int64_t plan = PlanMemory(ToyConfig(), input).activations;
    const int64_t kept =
        head + KeptByAllBlocks(ToyConfig(), /*recompute=*/true, type, kTokens, at::kCPU);
    EXPECT_GT(plan, kept);  // by one recomputed layer
    EXPECT_LT(kept, KeptByAllBlocks(ToyConfig(), /*recompute=*/false, type, kTokens, at::kCPU) / 2);
  }
}

}  // namespace
}  // namespace switchyard
