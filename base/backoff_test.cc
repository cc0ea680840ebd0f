#include "base/backoff.h"

#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(BackoffTest, DoublesUntilTheMaximum) {
  const BackoffPolicy policy{absl::Seconds(1), absl::Seconds(10), 2.0};
  EXPECT_EQ(BackoffDelay(policy, 0, 1.0), absl::Seconds(1));
  EXPECT_EQ(BackoffDelay(policy, 3, 1.0), absl::Seconds(8));
  EXPECT_EQ(BackoffDelay(policy, 4, 1.0), absl::Seconds(10));
  EXPECT_EQ(BackoffDelay(policy, 100000, 1.0), absl::Seconds(10));
}

TEST(BackoffTest, JitterTakesAtMostHalf) {
  EXPECT_EQ(BackoffDelay({absl::Seconds(1), absl::Seconds(10), 2.0}, 0, 0.0),
            absl::Milliseconds(500));
}

}  // namespace
}  // namespace switchyard
