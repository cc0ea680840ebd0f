// Every product against its plain loops, on ragged groups. Whole-number inputs make the plain
// products exact: they must agree bit for bit. The SwiGLU products go through exp: tolerance of two
// bf16 ulps.
#include "kernels/grouped_gemm/grouped_gemm.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/common/testing.h"
#include "kernels/grouped_gemm/grouped_gemm_ref.h"

namespace switchyard::kernels {
namespace {

constexpr float kBf16Epsilon = 1.f / 128;  // one ulp, relative, at worst

struct Groups {
  std::string name;
  std::vector<int32_t> counts;
  int spare_rows = 0;  // capacity past the last expert
};

std::vector<Groups> AllGroups() {
  return {
      {"ragged", {0, 1, 130, 300, 37, 0}, 75},
      {"one expert has all", {0, 0, 515, 0}, 0},
      {"nothing", {0, 0, 0}, 128},
      {"exact tiles", {128, 256, 64, 192}, 0},
      {"single rows", {1, 1, 1, 1, 1, 1, 1}, 0},
      {"wide spread", {63, 65, 127, 129, 255, 257, 0, 383, 5}, 1},
  };
}

class GroupedGemmTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }

  static std::vector<int32_t> Offsets(const Groups& groups) {
    std::vector<int32_t> offsets(groups.counts.size() + 1, 0);
    std::partial_sum(groups.counts.begin(), groups.counts.end(), offsets.begin() + 1);
    return offsets;
  }
};

// Rows nobody owns hold NaN, as a buffer with a budget does.
void PoisonSpare(std::vector<Bf16>& rows, int64_t used, int64_t width) {
  for (size_t i = used * width; i < rows.size(); ++i) rows[i] = Bf16{0xffff};
}

template <class Params, class Launch, class Reference>
void CheckLinear(bool gradient, int k, int n, const Launch& launch, const Reference& reference,
                 const Groups& groups, const std::vector<int32_t>& offsets) {
  Random random(17);
  const int experts = static_cast<int>(groups.counts.size());
  const int64_t rows = offsets.back() + groups.spare_rows;
  std::vector<Bf16> a = IntegerBf16(rows * k, 3, random);
  PoisonSpare(a, offsets.back(), k);
  const std::vector<Bf16> b = IntegerBf16(size_t{1} * experts * n * k, 3, random);
  std::vector<Bf16> want = Poisoned<Bf16>(rows * n);
  reference(Params{a.data(), b.data(), want.data(), offsets.data(), rows, experts, k, n, 0});
  DeviceArray<Bf16> device_a(a), device_b(b), out(rows * n);
  DeviceArray<int32_t> device_offsets(offsets);
  for (const int num_sms : {0, 6}) {
    ASSERT_EQ(launch(Params{device_a.get(), device_b.get(), out.get(), device_offsets.get(), rows,
                            experts, k, n, num_sms},
                     nullptr),
              cudaSuccess);
    EXPECT_EQ(BitDifference(out.Download(), want), "")
        << groups.name << " gradient " << gradient << " k " << k << " n " << n;
  }
}

TEST_F(GroupedGemmTest, LinearMatchesTheLoopsBitForBit) {
  for (const Groups& groups : AllGroups()) {
    for (const auto& [k, n] : {std::pair{72, 264}, {256, 520}, {768, 256}}) {
      CheckLinear<GroupedLinearParams>(false, k, n, GroupedLinear, GroupedLinearRef, groups,
                                       Offsets(groups));
    }
  }
}

TEST_F(GroupedGemmTest, LinearGradMatchesTheLoopsBitForBit) {
  for (const Groups& groups : AllGroups()) {
    for (const auto& [k, n] : {std::pair{72, 264}, {256, 520}, {768, 256}}) {
      CheckLinear<GroupedLinearGradParams>(true, k, n, GroupedLinearGrad, GroupedLinearGradRef,
                                           groups, Offsets(groups));
    }
  }
}

TEST_F(GroupedGemmTest, PlainProductNeedsNoOffsets) {
  Random random(3);
  const int64_t rows = 301;
  const int k = 136, n = 1000;
  const std::vector<Bf16> a = IntegerBf16(rows * k, 3, random), b = IntegerBf16(n * k, 3, random);
  std::vector<Bf16> want(rows * n);
  GroupedLinearRef({a.data(), b.data(), want.data(), nullptr, rows, 1, k, n, 0});
  DeviceArray<Bf16> device_a(a), device_b(b), out(rows * n);
  ASSERT_EQ(GroupedLinear({device_a.get(), device_b.get(), out.get(), nullptr, rows, 1, k, n, 0},
                          nullptr),
            cudaSuccess);
  EXPECT_EQ(BitDifference(out.Download(), want), "");
}

TEST_F(GroupedGemmTest, SplitReductionsMatchTheLoopsBitForBit) {
  Random random(4);
  const int64_t rows = 301;
  const int k = 840, n = 264;
  const std::vector<Bf16> a = IntegerBf16(rows * k, 3, random), b = IntegerBf16(n * k, 3, random);
  DeviceArray<Bf16> device_a(a), device_b(b);
  for (const int splits : {1, 2, 5}) {
    std::vector<float> want(splits * rows * n);
    LinearGradSplitRef({a.data(), b.data(), want.data(), rows, k, n, splits, 0});
    DeviceArray<float> partial(want.size());
    ASSERT_EQ(LinearGradSplit(
                  {device_a.get(), device_b.get(), partial.get(), rows, k, n, splits, 0}, nullptr),
              cudaSuccess);
    EXPECT_EQ(BitDifference(partial.Download(), want), "") << splits;
  }
}

template <class Out>
void CheckWeightGrad(const Groups& groups, const std::vector<int32_t>& offsets, int m, int n,
                     bool accumulate) {
  Random random(23);
  const int experts = static_cast<int>(groups.counts.size());
  const int64_t rows = offsets.back() + groups.spare_rows;
  std::vector<Bf16> a = IntegerBf16(rows * m, 2, random), b = IntegerBf16(rows * n, 2, random);
  PoisonSpare(a, offsets.back(), m);
  PoisonSpare(b, offsets.back(), n);
  std::vector<Out> want(size_t{1} * experts * m * n);
  std::uniform_int_distribution<int> uniform(-50, 50);
  for (Out& v : want) v = FromFloat<Out>(static_cast<float>(uniform(random)));
  DeviceArray<Out> out(want);
  GroupedWeightGradRef(GroupedWeightGradParams<Out>{a.data(), b.data(), want.data(), offsets.data(),
                                                    rows, experts, m, n, accumulate, 0});
  DeviceArray<Bf16> device_a(a), device_b(b);
  DeviceArray<int32_t> device_offsets(offsets);
  ASSERT_EQ(GroupedWeightGrad(GroupedWeightGradParams<Out>{device_a.get(), device_b.get(),
                                                           out.get(), device_offsets.get(), rows,
                                                           experts, m, n, accumulate, 0},
                              nullptr),
            cudaSuccess);
  EXPECT_EQ(BitDifference(out.Download(), want), "")
      << groups.name << " m " << m << " n " << n << " accumulate " << accumulate;
}

TEST_F(GroupedGemmTest, WeightGradMatchesTheLoopsBitForBit) {
  for (const Groups& groups : AllGroups()) {
    for (const bool accumulate : {false, true}) {
      for (const auto& [m, n] : {std::pair{136, 264}, {384, 128}}) {
        CheckWeightGrad<float>(groups, Offsets(groups), m, n, accumulate);
        CheckWeightGrad<Bf16>(groups, Offsets(groups), m, n, accumulate);
      }
    }
  }
}

TEST_F(GroupedGemmTest, UpProjectionMatchesTheLoops) {
  for (const Groups& groups : AllGroups()) {
    for (const auto& [hidden, ffn] : {std::pair{72, 136}, {256, 256}}) {
      Random random(29);
      const std::vector<int32_t> offsets = Offsets(groups);
      const int experts = static_cast<int>(groups.counts.size());
      const int64_t rows = offsets.back() + groups.spare_rows;
      const std::vector<Bf16> x = NormalBf16(rows * hidden, 1.f, random);
      const std::vector<Bf16> w1 = NormalBf16(size_t{2} * experts * ffn * hidden, 0.1f, random);
      std::vector<float> weight = NormalFloats(rows, 0.5f, random);
      std::vector<Bf16> z = Poisoned<Bf16>(rows * 2 * ffn), h = Poisoned<Bf16>(rows * ffn);
      GroupedUpProjectionRef({x.data(), w1.data(), weight.data(), z.data(), h.data(),
                              offsets.data(), rows, experts, hidden, ffn, 0});
      DeviceArray<Bf16> dx(x), dw1(w1), dz(z.size()), dh(h.size());
      DeviceArray<float> dweight(weight);
      DeviceArray<int32_t> doffsets(offsets);
      ASSERT_EQ(GroupedUpProjection({dx.get(), dw1.get(), dweight.get(), dz.get(), dh.get(),
                                     doffsets.get(), rows, experts, hidden, ffn, 0},
                                    nullptr),
                cudaSuccess);
      EXPECT_EQ(Difference(dz.Download(), z, 1e-3f, kBf16Epsilon), "") << groups.name;
      // z may round the other way, so h sees two ulps of gate and of up.
      EXPECT_EQ(Difference(dh.Download(), h, 4e-3f, 4 * kBf16Epsilon), "") << groups.name;
    }
  }
}

TEST_F(GroupedGemmTest, DownGradMatchesTheLoops) {
  for (const Groups& groups : AllGroups()) {
    for (const auto& [hidden, ffn] : {std::pair{72, 136}, {256, 520}}) {
      Random random(31);
      const std::vector<int32_t> offsets = Offsets(groups);
      const int experts = static_cast<int>(groups.counts.size());
      const int64_t rows = offsets.back() + groups.spare_rows;
      const int tiles = static_cast<int>(CeilDiv(ffn, kDownGradColumns));
      const std::vector<Bf16> dy = NormalBf16(rows * hidden, 1.f, random);
      const std::vector<Bf16> w2 = NormalBf16(size_t{1} * experts * ffn * hidden, 0.1f, random);
      const std::vector<Bf16> z = NormalBf16(rows * 2 * ffn, 2.f, random);
      const std::vector<float> weight = NormalFloats(rows, 0.5f, random);
      std::vector<Bf16> dz = Poisoned<Bf16>(z.size()), h = Poisoned<Bf16>(rows * ffn);
      std::vector<float> dp = Poisoned<float>(rows * tiles);
      GroupedDownGradRef({dy.data(), w2.data(), z.data(), weight.data(), dz.data(), h.data(),
                          dp.data(), offsets.data(), rows, experts, hidden, ffn, 0});
      DeviceArray<Bf16> ddy(dy), dw2(w2), din(z), ddz(dz.size()), dh(h.size());
      DeviceArray<float> dweight(weight), ddp(dp.size());
      DeviceArray<int32_t> doffsets(offsets);
      ASSERT_EQ(
          GroupedDownGrad({ddy.get(), dw2.get(), din.get(), dweight.get(), ddz.get(), dh.get(),
                           ddp.get(), doffsets.get(), rows, experts, hidden, ffn, 0},
                          nullptr),
          cudaSuccess);
      EXPECT_EQ(Difference(ddz.Download(), dz, 1e-3f, kBf16Epsilon), "") << groups.name;
      EXPECT_EQ(Difference(dh.Download(), h, 1e-3f, kBf16Epsilon), "") << groups.name;
      EXPECT_EQ(Difference(ddp.Download(), dp, 1e-3f, 1e-4f), "") << groups.name;
    }
  }
}

TEST_F(GroupedGemmTest, RefusesWhatItCannotDo) {
  DeviceArray<Bf16> data(1024);
  DeviceArray<int32_t> offsets(std::vector<int32_t>{0, 1});
  GroupedLinearParams p{data.get(), data.get(), data.get(), offsets.get(), 1, 1, 12, 8, 0};
  EXPECT_EQ(GroupedLinear(p, nullptr), cudaErrorInvalidValue);  // k % 8
  p.k = 8;
  p.experts = 513;
  EXPECT_EQ(GroupedLinear(p, nullptr), cudaErrorInvalidValue);
  p.experts = 2;
  p.offsets = nullptr;
  EXPECT_EQ(GroupedLinear(p, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace switchyard::kernels
