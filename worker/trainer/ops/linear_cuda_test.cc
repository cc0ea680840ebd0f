#include <ATen/ATen.h>
#include <c10/cuda/CUDAFunctions.h>

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/ops/linear.h"

namespace switchyard::ops {
namespace {

class LinearCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (c10::cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
    at::manual_seed(3);
  }
};

at::Tensor Draw(at::IntArrayRef sizes) {
  return at::randn(sizes, at::TensorOptions(at::kCUDA).dtype(at::kFloat)).to(at::kBFloat16);
}

double RelativeError(const at::Tensor& got, const at::Tensor& want) {
  const at::Tensor difference = got.to(at::kDouble) - want;
  return (difference.norm() / want.norm()).item<double>();
}

constexpr double kBf16 = 2.5e-3;  // one rounding: 2^-9 / sqrt(3) in the mean

TEST_F(LinearCudaTest, ProductsEqualDoublePrecision) {
  for (int64_t rows : {1, 7, 500, 8192}) {
    for (const auto& [in, out] : {std::pair<int64_t, int64_t>{2048, 5120}, {2048, 128}, {64, 24}}) {
      const at::Tensor x = Draw({rows, in}), w = Draw({out, in}), b = Draw({out});
      const at::Tensor dy = Draw({rows, out});
      const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
      EXPECT_LE(RelativeError(LinearForward(x, w, {}), at::mm(wide(x), wide(w).t())), kBf16);
      EXPECT_LE(RelativeError(LinearForward(x, w, b), at::addmm(wide(b), wide(x), wide(w).t())),
                kBf16);
      EXPECT_LE(RelativeError(LinearBackwardInput(dy, w), at::mm(wide(dy), wide(w))), kBf16);
      const at::Tensor dw = at::mm(wide(dy).t(), wide(x)), db = wide(dy).sum(0);
      for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        const double tolerance = type == at::kFloat ? 2e-5 : kBf16;
        const auto options = x.options().dtype(type);
        at::Tensor got = at::full({out, in}, std::numeric_limits<float>::quiet_NaN(), options);
        at::Tensor got_b = at::full({out}, std::numeric_limits<float>::quiet_NaN(), options);
        LinearBackwardWeight(dy, x, got, /*accumulate=*/false);
        LinearBackwardBias(dy, got_b, /*accumulate=*/false);
        EXPECT_LE(RelativeError(got, dw), tolerance) << rows << " " << in << " " << out;
        EXPECT_LE(RelativeError(got_b, db), tolerance);
        const at::Tensor before = wide(got), before_b = wide(got_b);
        LinearBackwardWeight(dy, x, got, /*accumulate=*/true);
        LinearBackwardBias(dy, got_b, /*accumulate=*/true);
        EXPECT_LE(RelativeError(got, before + dw), tolerance);
        EXPECT_LE(RelativeError(got_b, before_b + db), tolerance);
      }
    }
  }
}

TEST_F(LinearCudaTest, RowsMayBeApartAndMayBeMissing) {
  const at::Tensor fused = Draw({300, 96});
  const at::Tensor dy = fused.narrow(1, 16, 32), x = fused.narrow(1, 48, 40);
  at::Tensor dw = at::zeros({32, 40}, fused.options().dtype(at::kFloat));
  LinearBackwardWeight(dy, x, dw, /*accumulate=*/false);
  EXPECT_LE(RelativeError(dw, at::mm(dy.to(at::kDouble).t(), x.to(at::kDouble))), 2e-5);
  LinearBackwardWeight(dy.narrow(0, 0, 0), x.narrow(0, 0, 0), dw, /*accumulate=*/false);
  EXPECT_TRUE(at::equal(dw, at::zeros_like(dw)));
}

TEST_F(LinearCudaTest, GivesTheSameBitsTwiceWithoutWaiting) {
  const at::Tensor x = Draw({8192, 2048}), w = Draw({128, 2048}), dy = Draw({8192, 128});
  at::Tensor dw[2];
  at::Tensor y[2];
  c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
  for (int i : {0, 1}) {
    dw[i] = at::empty({128, 2048}, x.options().dtype(at::kFloat));
    LinearBackwardWeight(dy, x, dw[i], /*accumulate=*/false);
    y[i] = LinearForward(x, w, {});
  }
  c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
  EXPECT_TRUE(at::equal(dw[0], dw[1]));
  EXPECT_TRUE(at::equal(y[0], y[1]));
}

}  // namespace
}  // namespace switchyard::ops
