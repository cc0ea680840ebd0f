#include "kernels/adamw/adamw.h"

#include <gtest/gtest.h>

#include <limits>

#include "kernels/adamw/adamw_ref.h"
#include "kernels/common/testing.h"

namespace switchyard::kernels {
namespace {

class AdamWTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

template <class T>
std::vector<T> Values(size_t size, float scale, bool positive, Random& random) {
  std::vector<T> values(size);
  for (T& v : values) {
    const float f = NormalFloats(1, scale, random)[0];
    v = FromFloat<T>(positive ? std::fabs(f) : f);
  }
  return values;
}

template <class Grad, class Moment>
void CheckAdamW(int64_t size, bool master, int32_t apply) {
  Random random(5);
  std::vector<Bf16> weight(size);
  std::vector<int16_t> remainder(size);
  for (int64_t i = 0; i < size; ++i) {
    SplitMaster(NormalFloats(1, 0.5f, random)[0], &weight[i], &remainder[i]);
  }
  auto m = Values<Moment>(size, 0.1f, false, random), v = Values<Moment>(size, 0.01f, true, random);
  const auto grad = Values<Grad>(size, 1.f, false, random);
  const std::vector<StepControl> control = {{1.f, 0.25f, apply}};
  DeviceArray<Bf16> dweight(weight);
  DeviceArray<int16_t> dremainder(remainder);
  DeviceArray<Moment> dm(m), dv(v);
  DeviceArray<Grad> dgrad(grad);
  DeviceArray<StepControl> dcontrol(control);
  AdamWParams<Grad, Moment> p{
      weight.data(), master ? remainder.data() : nullptr,
      m.data(),      v.data(),
      grad.data(),   control.data(),
      size,          99,
      1000,          {0.999f, master ? 0.f : 0.01f, 0.1f, 0.95f, 0.05f, 0.31f, 1e-8f, 0.05f}};
  AdamWRef(p);
  p.weight = dweight.get();
  p.remainder = master ? dremainder.get() : nullptr;
  p.m = dm.get();
  p.v = dv.get();
  p.grad = dgrad.get();
  p.control = dcontrol.get();
  ASSERT_EQ(AdamW(p, nullptr), cudaSuccess);
  EXPECT_EQ(BitDifference(dm.Download(), m), "");
  EXPECT_EQ(BitDifference(dv.Download(), v), "");
  EXPECT_EQ(BitDifference(dweight.Download(), weight), "");
  EXPECT_EQ(BitDifference(dremainder.Download(), remainder), "");
}

TEST_F(AdamWTest, MatchesTheLoopsBitForBit) {
  for (const int64_t size : {0, 8, 2048, 100008}) {
    for (const bool master : {true, false}) {
      CheckAdamW<float, float>(size, master, 1);
      CheckAdamW<float, Bf16>(size, master, 1);
      CheckAdamW<Bf16, float>(size, master, 1);
      CheckAdamW<Bf16, Bf16>(size, master, 1);
    }
  }
}

TEST_F(AdamWTest, ChangesNothingWhenTheNormIsNotFinite) { CheckAdamW<Bf16, Bf16>(4096, true, 0); }

TEST(MasterTest, SplitAndJoinAreExact) {
  Random random(6);
  for (int i = 0; i < 100000; ++i) {
    const float master = BitsFloat(static_cast<uint32_t>(random()));
    if (!std::isfinite(master)) continue;
    Bf16 weight;
    int16_t remainder;
    SplitMaster(master, &weight, &remainder);
    ASSERT_EQ(FloatBits(JoinMaster(weight, remainder)), FloatBits(master));
    if (std::fabs(master) < 1e38f && std::fabs(master) > 1e-37f) {
      ASSERT_LE(std::fabs(ToFloat(weight) - master), std::fabs(master) / 256);
    }
  }
}

TEST(StochasticRoundingTest, KeepsTheMean) {
  const float value = 1.f + 1.f / 128 * 0.3f;  // three tenths of an ulp above 1
  double sum = 0;
  for (int i = 0; i < 100000; ++i)
    sum += ToFloat(RoundStochastic(value, RoundingBits(7, i) & 0xffffu));
  EXPECT_NEAR(sum / 100000, value, 5e-5);
}

template <class Grad>
void CheckNorm(int64_t size, float poison) {
  Random random(8);
  std::vector<Grad> grad = Values<Grad>(size, 1.f, false, random);
  if (poison != 0 && size > 0) grad[size / 2] = FromFloat<Grad>(poison);
  double sum = 0;
  for (const Grad& g : grad) sum += double{ToFloat(g)} * ToFloat(g);
  const float norm = static_cast<float>(std::sqrt(sum) / 4);
  DeviceArray<Grad> dgrad(grad);
  DeviceArray<float> partial(kNormPartials);
  DeviceArray<StepControl> control(1);
  ASSERT_EQ(GradNorm(GradNormParams<Grad>{dgrad.get(), partial.get(), size}, nullptr), cudaSuccess);
  ASSERT_EQ(FinishGradNorm({partial.get(), control.get(), kNormPartials, 4.f, 1.f}, nullptr),
            cudaSuccess);
  const StepControl got = control.Download()[0];
  EXPECT_EQ(got.apply, std::isfinite(norm) ? 1 : 0);
  if (!std::isfinite(norm)) return;
  EXPECT_NEAR(got.norm, norm, 1e-5f * norm);
  EXPECT_NEAR(got.scale, norm > 1.f ? 0.25f / norm : 0.25f, 1e-5f);
  std::vector<float> partials = partial.Download();
  StepControl want;
  FinishGradNormRef({partials.data(), &want, kNormPartials, 4.f, 1.f});
  EXPECT_FLOAT_EQ(got.norm, want.norm);
  EXPECT_FLOAT_EQ(got.scale, want.scale);
}

TEST_F(AdamWTest, NormClipsAndFindsWhatIsNotFinite) {
  for (const int64_t size : {0, 8, 4096, 3000000}) {
    for (const float poison : {0.f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
      CheckNorm<float>(size, poison);
      CheckNorm<Bf16>(size, poison);
    }
  }
}

}  // namespace
}  // namespace switchyard::kernels
