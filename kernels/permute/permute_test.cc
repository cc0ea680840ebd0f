// Data movement is exact; sums of whole numbers are exact too.
#include "kernels/permute/permute.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/common/testing.h"
#include "kernels/permute/permute_ref.h"

namespace switchyard::kernels {
namespace {

struct Shape {
  int64_t tokens;
  int hidden, top_k;
};
const Shape kShapes[] = {{0, 64, 2},     {1, 8, 1},     {37, 264, 3},
                         {515, 2048, 8}, {64, 1032, 4}, {9, 128, 32}};

// A random bijection of copies to rows; with `holes` every fifth copy has no row.
std::vector<int32_t> RandomRows(int64_t copies, bool holes, Random& random) {
  std::vector<int32_t> rows(copies);
  std::iota(rows.begin(), rows.end(), 0);
  std::shuffle(rows.begin(), rows.end(), random);
  for (int64_t i = 0; holes && i < copies; i += 5) rows[i] = -1;
  return rows;
}

class PermuteTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(PermuteTest, CopiesEveryTokenToItsRows) {
  for (const auto& [tokens, hidden, top_k] : kShapes) {
    for (const bool holes : {false, true}) {
      Random random(1);
      const int64_t copies = tokens * top_k;
      const std::vector<Bf16> x = NormalBf16(tokens * hidden, 1.f, random);
      const std::vector<float> weight = NormalFloats(copies, 1.f, random);
      const std::vector<int32_t> row_of = RandomRows(copies, holes, random);
      std::vector<Bf16> want = Poisoned<Bf16>(copies * hidden);
      std::vector<float> want_weight = Poisoned<float>(copies);
      PermuteRef({x.data(), row_of.data(), weight.data(), want.data(), want_weight.data(), tokens,
                  hidden, top_k});
      DeviceArray<Bf16> dx(x), out(want.size());
      DeviceArray<float> dweight(weight), row_weight(copies);
      DeviceArray<int32_t> drow(row_of);
      ASSERT_EQ(Permute({dx.get(), drow.get(), dweight.get(), out.get(), row_weight.get(), tokens,
                         hidden, top_k},
                        nullptr),
                cudaSuccess);
      EXPECT_EQ(BitDifference(out.Download(), want), "") << tokens << " " << hidden;
      EXPECT_EQ(BitDifference(row_weight.Download(), want_weight), "") << tokens << " " << hidden;
    }
  }
}

TEST_F(PermuteTest, CombineSumsInOrder) {
  for (const auto& [tokens, hidden, top_k] : kShapes) {
    for (const bool holes : {false, true}) {
      Random random(2);
      const int64_t copies = tokens * top_k;
      const int partials = 3;
      const std::vector<Bf16> rows = NormalBf16(copies * hidden, 1.f, random);
      const std::vector<Bf16> residual = NormalBf16(tokens * hidden, 1.f, random);
      const std::vector<float> dp = NormalFloats(copies * partials, 1.f, random);
      const std::vector<int32_t> row_of = RandomRows(copies, holes, random);
      std::vector<Bf16> want(tokens * hidden);
      std::vector<float> want_weight(copies);
      CombineRef({rows.data(), row_of.data(), holes ? nullptr : residual.data(), dp.data(),
                  want.data(), want_weight.data(), tokens, copies, hidden, top_k, partials});
      DeviceArray<Bf16> drows(rows), dresidual(residual), out(want.size());
      DeviceArray<float> ddp(dp), d_weight(copies);
      DeviceArray<int32_t> drow(row_of);
      ASSERT_EQ(Combine({drows.get(), drow.get(), holes ? nullptr : dresidual.get(), ddp.get(),
                         out.get(), d_weight.get(), tokens, copies, hidden, top_k, partials},
                        nullptr),
                cudaSuccess);
      // Same order and only additions: the same bits.
      EXPECT_EQ(BitDifference(out.Download(), want), "") << tokens << " " << hidden;
      EXPECT_EQ(BitDifference(d_weight.Download(), want_weight), "") << tokens << " " << hidden;
    }
  }
}

TEST_F(PermuteTest, RefusesWhatItCannotDo) {
  PermuteParams p{};
  p.tokens = 1;
  p.hidden = 12;
  p.top_k = 2;
  EXPECT_EQ(Permute(p, nullptr), cudaErrorInvalidValue);
  p.hidden = 16;
  p.top_k = 33;
  EXPECT_EQ(Permute(p, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace switchyard::kernels
