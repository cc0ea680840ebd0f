#include "kernels/rmsnorm/rmsnorm.h"

#include <gtest/gtest.h>

#include "kernels/common/testing.h"
#include "kernels/rmsnorm/rmsnorm_ref.h"

namespace switchyard::kernels {
namespace {

constexpr float kBf16Epsilon = 1.f / 128;  // one ulp, relative, at worst
constexpr NormKind kKinds[] = {NormKind::kLlama, NormKind::kFloatWeight, NormKind::kZeroCentred};

class RmsNormTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(RmsNormTest, ForwardMatchesTheLoops) {
  for (const auto& [tokens, hidden] :
       {std::pair{0, 64}, {1, 8}, {7, 264}, {33, 1024}, {1029, 2048}, {5, 4104}, {3, 8192}}) {
    for (const NormKind kind : kKinds) {
      for (const bool adds : {false, true}) {
        Random random(11);
        const size_t size = size_t{1} * tokens * hidden;
        const std::vector<Bf16> x = NormalBf16(size, 1.f, random),
                                r = NormalBf16(size, 1.f, random);
        const std::vector<Bf16> w = NormalBf16(hidden, 1.f, random);
        std::vector<Bf16> sum(size), out(size);
        std::vector<float> rstd(tokens);
        RmsNormRef({x.data(), adds ? r.data() : nullptr, w.data(), sum.data(), out.data(),
                    rstd.data(), tokens, hidden, 1e-6f, kind});
        DeviceArray<Bf16> dx(x), dr(r), dw(w), dsum(size), dout(size);
        DeviceArray<float> drstd(tokens);
        ASSERT_EQ(RmsNorm({dx.get(), adds ? dr.get() : nullptr, dw.get(), dsum.get(), dout.get(),
                           drstd.get(), tokens, hidden, 1e-6f, kind},
                          nullptr),
                  cudaSuccess);
        EXPECT_EQ(adds ? BitDifference(dsum.Download(), sum) : "", "");
        EXPECT_EQ(Difference(drstd.Download(), rstd, 0.f, 1e-5f), "");
        // kLlama rounds twice, and the inner rounding may fall the other way.
        EXPECT_EQ(Difference(dout.Download(), out, 0.f, 2 * kBf16Epsilon), "") << hidden;
      }
    }
  }
}

TEST_F(RmsNormTest, GradientMatchesTheLoops) {
  for (const auto& [tokens, hidden] :
       {std::pair{0, 64}, {1, 8}, {7, 264}, {33, 1024}, {1500, 2048}, {5, 4104}, {3, 8192}}) {
    for (const NormKind kind : kKinds) {
      for (const bool adds : {false, true}) {
        Random random(12);
        const size_t size = size_t{1} * tokens * hidden;
        const std::vector<Bf16> sum = NormalBf16(size, 1.f, random),
                                w = NormalBf16(hidden, 1.f, random);
        const std::vector<Bf16> dout = NormalBf16(size, 1.f, random),
                                d_sum = NormalBf16(size, 1.f, random);
        std::vector<float> rstd(tokens), d_weight = NormalFloats(hidden, 1.f, random);
        for (float& v : rstd) v = 0.8f + 0.001f * (random() % 400);
        std::vector<Bf16> dx(size);
        DeviceArray<float> dd_weight(d_weight), workspace(size_t{kNormGradBlocks} * hidden);
        RmsNormGradRef({sum.data(), w.data(), rstd.data(), dout.data(),
                        adds ? d_sum.data() : nullptr, dx.data(), d_weight.data(), nullptr, tokens,
                        hidden, adds, kind});
        DeviceArray<Bf16> dsum(sum), dw(w), ddout(dout), dd_sum(d_sum), ddx(size);
        DeviceArray<float> drstd(rstd);
        ASSERT_EQ(RmsNormGrad({dsum.get(), dw.get(), drstd.get(), ddout.get(),
                               adds ? dd_sum.get() : nullptr, ddx.get(), dd_weight.get(),
                               workspace.get(), tokens, hidden, adds, kind},
                              nullptr),
                  cudaSuccess);
        EXPECT_EQ(Difference(ddx.Download(), dx, 2e-3f, kBf16Epsilon), "") << hidden;
        // fp32 sums of up to 1500 terms of size 1 in another order.
        EXPECT_EQ(Difference(dd_weight.Download(), d_weight, 1e-3f, 1e-4f), "") << hidden;
      }
    }
  }
}

TEST_F(RmsNormTest, GradientIsTheSameOnEveryRun) {
  Random random(13);
  const int tokens = 777, hidden = 2048;
  const std::vector<Bf16> s = NormalBf16(tokens * hidden, 1.f, random);
  DeviceArray<Bf16> sum(s), dout(NormalBf16(s.size(), 1.f, random)), dx(s.size());
  DeviceArray<Bf16> weight(NormalBf16(hidden, 1.f, random));
  DeviceArray<float> rstd(std::vector<float>(tokens, 1.f)), d_weight(hidden);
  DeviceArray<float> workspace(size_t{kNormGradBlocks} * hidden);
  std::vector<float> first;
  for (int run = 0; run < 3; ++run) {
    ASSERT_EQ(
        RmsNormGrad({sum.get(), weight.get(), rstd.get(), dout.get(), nullptr, dx.get(),
                     d_weight.get(), workspace.get(), tokens, hidden, false, NormKind::kLlama},
                    nullptr),
        cudaSuccess);
    const std::vector<float> got = d_weight.Download();
    if (run == 0) first = got;
    EXPECT_EQ(BitDifference(got, first), "");
  }
}

}  // namespace
}  // namespace switchyard::kernels
