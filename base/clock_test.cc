#include "base/clock.h"

#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(SimClockTest, WallJumpLeavesMonotonicAlone) {
  SimClock clock;
  const absl::Duration before = clock.Monotonic();
  clock.JumpWall(absl::Hours(-24));
  EXPECT_EQ(clock.Monotonic(), before);
  clock.Advance(absl::Seconds(5));
  EXPECT_EQ(clock.Monotonic(), before + absl::Seconds(5));
}

TEST(RealClockTest, MonotonicNeverGoesBack) {
  const absl::Duration first = RealClock::Get().Monotonic();
  EXPECT_GE(RealClock::Get().Monotonic(), first);
}

}  // namespace
}  // namespace switchyard
