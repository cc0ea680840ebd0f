#include "worker/trainer/ops/linear.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard::ops {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

double Error(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

at::Tensor Draw(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); }

at::Tensor Nan(at::IntArrayRef sizes, at::ScalarType type) {
  return at::full(sizes, std::numeric_limits<double>::quiet_NaN(), type);
}

TEST(LinearTest, WeightGradientsAreAddedInSinglePrecision) {
  at::manual_seed(6);
  const at::Tensor dy = Draw({300, 3}).to(at::kBFloat16), x = Draw({300, 4}).to(at::kBFloat16);
  at::Tensor dw = at::full({3, 4}, 2.0f);
  LinearBackwardWeight(dy, x, dw, /*accumulate=*/true);
  const at::Tensor want = 2 + at::mm(dy.to(at::kDouble).t(), x.to(at::kDouble));
  EXPECT_LE(Error(dw, want), 1e-4);  // one rounding of the result to bf16 would be off by 0.1
  at::Tensor db = at::full({3}, 2.0f);
  LinearBackwardBias(dy, db, /*accumulate=*/true);
  EXPECT_LE(Error(db, 2 + dy.to(at::kDouble).sum(0)), 1e-4);
}

TEST(GroupedLinearTest, EqualsOneLinearPerGroup) {
  at::manual_seed(7);
  for (const std::vector<int64_t>& rows :
       {std::vector<int64_t>{2, 0, 5}, {0, 0, 0}, {0, 9, 0}, {1, 1, 1}}) {
    const int64_t total = rows[0] + rows[1] + rows[2];
    const at::Tensor x = Draw({total, 4}), w = Draw({3, 6, 4}), dy = Draw({total, 6});
    at::Tensor dw = at::zeros_like(w);
    const at::Tensor y = GroupedLinearForward(x, w, rows);
    const at::Tensor dx = GroupedLinearBackwardInput(dy, w, rows);
    GroupedLinearBackwardWeight(dy, x, rows, dw, /*accumulate=*/true);
    int64_t begin = 0;
    for (int64_t g = 0; g < 3; ++g) {
      const at::Tensor xg = x.narrow(0, begin, rows[g]), dyg = dy.narrow(0, begin, rows[g]);
      EXPECT_TRUE(at::allclose(y.narrow(0, begin, rows[g]), at::mm(xg, w[g].t())));
      EXPECT_TRUE(at::allclose(dx.narrow(0, begin, rows[g]), at::mm(dyg, w[g])));
      EXPECT_TRUE(at::allclose(dw[g], at::mm(dyg.t(), xg)));
      begin += rows[g];
    }
  }
}

TEST(GroupedLinearTest, RefusesRowsThatDoNotAddUp) {
  const at::Tensor x = at::ones({4, 2}), w = at::ones({2, 3, 2});
  EXPECT_THAT(
      [&] {
        GroupedLinearForward(x, w, {1, 2});
      },
      ThrowsMessage<c10::Error>(HasSubstr("sum to 3 rows, there are 4")));
  EXPECT_THAT([&] { GroupedLinearForward(x, w, {4}); },
              ThrowsMessage<c10::Error>(HasSubstr("1 groups of rows for 2 weights")));
}

TEST(LinearTest, OverwritingIgnoresWhatTheBufferHolds) {
  at::manual_seed(8);
  for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (int64_t rows : {0, 1, 37}) {
      const at::Tensor dy = Draw({rows, 6}).to(at::kBFloat16);
      const at::Tensor x = Draw({rows, 4}).to(at::kBFloat16);
      at::Tensor dw = Nan({6, 4}, type), db = Nan({6}, type);
      LinearBackwardWeight(dy, x, dw, /*accumulate=*/false);
      LinearBackwardBias(dy, db, /*accumulate=*/false);
      const double epsilon = type == at::kFloat ? 1e-5 : 1.0 / 256;
      EXPECT_TRUE(at::allclose(dw.to(at::kDouble),
                               at::mm(dy.t().to(at::kDouble), x.to(at::kDouble)), epsilon, 1e-5));
      EXPECT_TRUE(at::allclose(db.to(at::kDouble), dy.to(at::kDouble).sum(0), epsilon, 1e-5));
    }
  }
}

TEST(LinearTest, Bfloat16BuffersRoundTheSumOnce) {
  // 256 + 1 is between two bf16 values, 256 + 1 + 1 is one: products rounded on their own, or sums
  // rounded twice, give another result.
  const at::Tensor dy = at::ones({2, 1}, at::kBFloat16), x = at::ones({2, 1}, at::kBFloat16);
  at::Tensor dw = at::full({1, 1}, 256.0, at::kBFloat16);
  LinearBackwardWeight(dy, x, dw, /*accumulate=*/true);
  EXPECT_EQ(dw.item<float>(), 258.0f);
  at::Tensor db = at::full({1}, 256.0, at::kBFloat16);
  LinearBackwardBias(dy, db, /*accumulate=*/true);
  EXPECT_EQ(db.item<float>(), 258.0f);
}

TEST(LinearTest, SinglePrecisionGradientsMeetBfloat16Buffers) {
  at::manual_seed(9);
  const at::Tensor dy = Draw({50, 3}).to(at::kFloat), x = Draw({50, 4}).to(at::kBFloat16);
  const at::Tensor want = at::mm(dy.t().to(at::kDouble), x.to(at::kDouble));
  at::Tensor dw = Nan({3, 4}, at::kBFloat16);
  LinearBackwardWeight(dy, x, dw, /*accumulate=*/false);
  EXPECT_TRUE(at::allclose(dw.to(at::kDouble), want, 1.0 / 256, 1e-6));
  LinearBackwardWeight(dy, x, dw, /*accumulate=*/true);
  EXPECT_TRUE(at::allclose(dw.to(at::kDouble), 2 * want, 1.0 / 128, 1e-6));
}

TEST(LinearTest, RefusesBuffersThatDoNotFit) {
  EXPECT_THAT(
      [] {
        LinearBackwardWeight(at::ones({2, 3}), at::ones({2, 4}), at::zeros({4, 3}),
                             /*accumulate=*/true);
      },
      ThrowsMessage<c10::Error>(HasSubstr("do not fit")));
}

TEST(GroupedLinearTest, OverwritingClearsGroupsWithoutRows) {
  const at::Tensor dy = at::ones({2, 3}), x = at::ones({2, 4});
  at::Tensor dw = Nan({3, 3, 4}, at::kFloat);
  GroupedLinearBackwardWeight(dy, x, {0, 2, 0}, dw, /*accumulate=*/false);
  EXPECT_TRUE(at::equal(dw[0], at::zeros({3, 4})));
  EXPECT_TRUE(at::equal(dw[1], at::full({3, 4}, 2.0f)));
  EXPECT_TRUE(at::equal(dw[2], at::zeros({3, 4})));
}

}  // namespace
}  // namespace switchyard::ops
