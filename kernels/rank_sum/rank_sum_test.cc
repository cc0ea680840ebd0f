// Both sides add in the order of the ranks: the same bits.
#include "kernels/rank_sum/rank_sum.h"

#include <gtest/gtest.h>

#include "kernels/common/testing.h"
#include "kernels/rank_sum/rank_sum_ref.h"

namespace switchyard::kernels {
namespace {

class RankSumTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

// `skip` elements before the parts make them unaligned.
template <class T>
void Check(int ranks, int64_t size, int64_t skip) {
  Random random(81);
  std::vector<T> parts(skip + ranks * size);
  for (T& v : parts) v = FromFloat<T>(NormalFloats(1, 1.f, random)[0]);
  std::vector<T> want(size);
  RankSumRef(RankSumParams<T>{parts.data() + skip, want.data(), size, ranks});
  DeviceArray<T> from(parts), out(size);
  ASSERT_EQ(RankSum(RankSumParams<T>{from.get() + skip, out.get(), size, ranks}, nullptr),
            cudaSuccess);
  EXPECT_EQ(BitDifference(out.Download(), want), "") << ranks << " ranks, " << size << ", " << skip;
}

TEST_F(RankSumTest, MatchesTheLoopsBitForBit) {
  for (const int ranks : {1, 2, 3, 8}) {
    for (const int64_t size : {0, 1, 15, 16, 4096, 300'007}) {
      for (const int64_t skip : {0, 1}) {
        Check<float>(ranks, size, skip);
        Check<Bf16>(ranks, size, skip);
      }
    }
  }
}

TEST_F(RankSumTest, RefusesWhatIsNoSum) {
  EXPECT_EQ(RankSum(RankSumParams<float>{nullptr, nullptr, 8, 0}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(RankSum(RankSumParams<Bf16>{nullptr, nullptr, -1, 2}, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace switchyard::kernels
