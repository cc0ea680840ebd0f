#include "client/tensor_values.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace switchyard {
namespace {

// The nearest of the two neighbours, by exhaustive comparison in double precision.
template <typename ToFloat>
void ExpectNearest(float value, uint16_t got, ToFloat to_float) {
  const double x = value, y = to_float(got);
  if (!std::isfinite(y)) return;
  for (const int step : {-1, 1}) {
    const uint16_t next = static_cast<uint16_t>(got + step);
    const double z = to_float(next);
    if (!std::isfinite(z) || std::signbit(z) != std::signbit(y)) continue;
    const double here = std::fabs(x - y), there = std::fabs(x - z);
    ASSERT_LE(here, there) << value;
    if (here == there) {
      ASSERT_EQ(got % 2, 0) << value << ": ties go to even";
    }
  }
}

TEST(TensorValuesTest, EveryHalfAndBf16ComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t b = static_cast<uint16_t>(bits);
    const float half = HalfToFloat(b), brain = Bf16ToFloat(b);
    if (std::isnan(half)) {
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(half)))) << bits;
    } else {
      EXPECT_EQ(FloatToHalf(half), b) << bits;
    }
    if (std::isnan(brain)) {
      EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(brain)))) << bits;
    } else {
      EXPECT_EQ(FloatToBf16(brain), b) << bits;
    }
  }
}

TEST(TensorValuesTest, RoundsToTheNearestTiesToEven) {
  std::mt19937 random(3);
  for (int i = 0; i < 1'000'000; ++i) {
    uint32_t bits = random();
    // Half's range, its subnormals and ties among them.
    if (i % 2 == 0) bits = (bits & 0x80ffffff) | ((96 + bits % 48) << 23);
    if (i % 3 == 0) bits &= 0xfffff000;
    float value;
    memcpy(&value, &bits, 4);
    if (!std::isfinite(value)) continue;
    ExpectNearest(value, FloatToHalf(value), HalfToFloat);
    ExpectNearest(value, FloatToBf16(value), Bf16ToFloat);
  }
}

TEST(TensorValuesTest, TheEdgesOfHalf) {
  EXPECT_EQ(FloatToHalf(65504.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e30f), 0xfc00);
  EXPECT_EQ(FloatToHalf(std::ldexp(1.0f, -24)), 1);
  EXPECT_EQ(FloatToHalf(std::ldexp(1.0f, -25)), 0) << "a tie";
  EXPECT_EQ(FloatToHalf(-0.0f), 0x8000);
  EXPECT_EQ(FloatToHalf(1e-40f), 0);
}

TEST(TensorValuesTest, CountsWhatBecomesInfinite) {
  const float values[] = {1.0f, 70000.0f, -1e9f, std::numeric_limits<float>::infinity(), NAN};
  const absl::string_view bytes(reinterpret_cast<const char*>(values), sizeof(values));
  std::string out;
  EXPECT_EQ(ConvertElements(bytes, TensorDtype::kF32, TensorDtype::kF16, out), 2);
  EXPECT_EQ(out.size(), 10u);
  EXPECT_EQ(ElementAt(out, TensorDtype::kF16, 0), 1.0f);
  EXPECT_TRUE(std::isnan(ElementAt(out, TensorDtype::kF16, 4)));
  out.clear();
  EXPECT_EQ(ConvertElements(bytes, TensorDtype::kF32, TensorDtype::kBf16, out), 0);
}

}  // namespace
}  // namespace switchyard
