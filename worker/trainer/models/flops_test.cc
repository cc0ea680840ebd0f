#include "worker/trainer/models/flops.h"

#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(FlopsTest, Qwen3With30BParametersAt4096TokensNeedsTheKnownNumbers) {
  ModelConfig c;
  c.vocab_size = 151936;
  c.hidden_size = 2048;
  c.num_layers = 48;
  c.num_heads = 32;
  c.num_kv_heads = 4;
  c.head_dim = 128;
  c.moe_intermediate_size = 768;
  c.num_experts = 128;
  c.top_k = 8;
  const double of_a_token = ForwardFlops(c, 4096, int64_t{4096} * 4097 / 2) / 4096;
  EXPECT_NEAR(of_a_token, 7.694e9, 0.001e9);
  c.num_layers = 4;
  EXPECT_NEAR(3 * ForwardFlops(c, 4096, int64_t{4096} * 4097 / 2) / 4096, 3.634e9, 0.002e9);
}

TEST(FlopsTest, ShortDocumentsNeedLessAttention) {
  ModelConfig c;
  c.hidden_size = 64;
  c.num_layers = 2;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.intermediate_size = 128;
  const double without = ForwardFlops(c, 100, 0);
  EXPECT_EQ(ForwardFlops(c, 100, 5050) - without, 5050.0 * 2 * 4 * 64);
  EXPECT_EQ(ForwardFlops(c, 200, 0), 2 * without);
}

}  // namespace
}  // namespace switchyard
