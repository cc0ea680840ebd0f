// ids, row_of and offsets are exact; weights to a few fp32 ulps (or one bf16 ulp when rounded).
#include "kernels/router_topk/router_topk.h"

#include <gtest/gtest.h>

#include "kernels/common/testing.h"
#include "kernels/router_topk/router_topk_ref.h"

namespace switchyard::kernels {
namespace {

struct Shape {
  int64_t tokens;
  int experts, top_k;
};
const Shape kShapes[] = {{0, 8, 2},      {1, 1, 1},      {31, 40, 3},   {33, 128, 8},
                         {4099, 128, 8}, {300, 256, 16}, {70, 512, 10}, {9000, 64, 6}};

enum class Logits { kRandom, kAllEqual, kOneExpert };

std::vector<Bf16> MakeLogits(Logits kind, const Shape& s, Random& random) {
  std::vector<Bf16> logits = NormalBf16(s.tokens * s.experts, 1.f, random);  // bf16: ties do occur
  for (size_t i = 0; i < logits.size(); ++i) {
    if (kind == Logits::kAllEqual) logits[i] = ToBf16(0.5f);
    if (kind == Logits::kOneExpert && i % s.experts == size_t(s.experts) / 2)
      logits[i] = ToBf16(30.f);
  }
  return logits;
}

class RouterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(RouterTest, ChoosesAndPlacesAsTheLoopsDo) {
  for (const Shape& s : kShapes) {
    for (const Logits kind : {Logits::kRandom, Logits::kAllEqual, Logits::kOneExpert}) {
      for (const bool normalize : {false, true}) {
        Random random(41);
        const int64_t copies = s.tokens * s.top_k;
        const std::vector<Bf16> logits = MakeLogits(kind, s, random);
        std::vector<int32_t> ids(copies), row_of(copies), offsets(s.experts + 1);
        std::vector<float> weights(copies), sums(s.experts);
        RouterTopKRef({logits.data(), ids.data(), weights.data(), row_of.data(), offsets.data(),
                       sums.data(), nullptr, s.tokens, s.experts, s.top_k, normalize, normalize});
        DeviceArray<Bf16> dlogits(logits);
        DeviceArray<int32_t> dids(copies), drow(copies), doffsets(s.experts + 1);
        DeviceArray<float> dweights(copies), dsums(s.experts);
        DeviceArray<uint8_t> workspace(RouterWorkspaceBytes(s.tokens, s.experts));
        ASSERT_EQ(RouterTopK({dlogits.get(), dids.get(), dweights.get(), drow.get(), doffsets.get(),
                              dsums.get(), workspace.get(), s.tokens, s.experts, s.top_k, normalize,
                              normalize},
                             nullptr),
                  cudaSuccess);
        EXPECT_EQ(dids.Download(), ids) << s.tokens << " " << s.experts;
        EXPECT_EQ(drow.Download(), row_of) << s.tokens << " " << s.experts;
        EXPECT_EQ(doffsets.Download(), offsets);
        EXPECT_EQ(Difference(dweights.Download(), weights, 1e-7f, normalize ? 1.f / 128 : 1e-5f),
                  "");
        EXPECT_EQ(Difference(dsums.Download(), sums, 1e-5f, 1e-5f), "");
      }
    }
  }
}

TEST_F(RouterTest, GradientMatchesTheLoops) {
  for (const Shape& s : kShapes) {
    for (const bool normalize : {false, true}) {
      Random random(42);
      const int64_t copies = s.tokens * s.top_k;
      const std::vector<Bf16> logits = MakeLogits(Logits::kRandom, s, random);
      std::vector<int32_t> ids(copies), row_of(copies), offsets(s.experts + 1);
      std::vector<float> weights(copies), sums(s.experts);
      RouterTopKRef({logits.data(), ids.data(), weights.data(), row_of.data(), offsets.data(),
                     sums.data(), nullptr, s.tokens, s.experts, s.top_k, normalize, normalize});
      const std::vector<float> d_weights = NormalFloats(copies, 1.f, random);
      const std::vector<float> d_prob = NormalFloats(s.experts, 1.f, random);
      std::vector<Bf16> d_logits(logits.size());
      RouterTopKGradRef({logits.data(), ids.data(), d_weights.data(), d_prob.data(),
                         d_logits.data(), s.tokens, s.experts, s.top_k, normalize});
      DeviceArray<Bf16> dlogits(logits), out(logits.size());
      DeviceArray<int32_t> dids(ids);
      DeviceArray<float> dd_weights(d_weights), dd_prob(d_prob);
      ASSERT_EQ(RouterTopKGrad({dlogits.get(), dids.get(), dd_weights.get(), dd_prob.get(),
                                out.get(), s.tokens, s.experts, s.top_k, normalize},
                               nullptr),
                cudaSuccess);
      EXPECT_EQ(Difference(out.Download(), d_logits, 1e-5f, 1.f / 128), "")
          << s.tokens << " " << s.experts;
    }
  }
}

TEST_F(RouterTest, RowsOfNanStillGetValidIds) {
  const Shape s{5, 64, 4};
  DeviceArray<Bf16> logits(s.tokens * s.experts);  // poison: NaN
  DeviceArray<int32_t> ids(s.tokens * s.top_k), row_of(s.tokens * s.top_k), offsets(s.experts + 1);
  DeviceArray<float> weights(s.tokens * s.top_k);
  DeviceArray<uint8_t> workspace(RouterWorkspaceBytes(s.tokens, s.experts));
  ASSERT_EQ(RouterTopK({logits.get(), ids.get(), weights.get(), row_of.get(), offsets.get(),
                        nullptr, workspace.get(), s.tokens, s.experts, s.top_k, true, true},
                       nullptr),
            cudaSuccess);
  for (const int32_t id : ids.Download()) EXPECT_TRUE(id >= 0 && id < s.experts);
  EXPECT_EQ(offsets.Download().back(), s.tokens * s.top_k);
}

}  // namespace
}  // namespace switchyard::kernels
