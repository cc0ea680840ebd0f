#include "base/thread.h"

#include <atomic>

#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(ThreadTest, DestructorStopsAndJoins) {
  std::atomic<bool> ended{false};
  {
    Thread thread("test", [&](const StopToken& stop) {
      while (!stop.WaitForStop(absl::Seconds(60))) {
      }
      ended = true;
    });
  }
  EXPECT_TRUE(ended);
}

TEST(ThreadTest, MoveAssignmentJoinsTheOldThread) {
  std::atomic<int> ended{0};
  auto body = [&](const StopToken& stop) {
    stop.WaitForStop(absl::Seconds(60));
    ++ended;
  };
  Thread thread("first", body);
  thread = Thread("second", body);
  EXPECT_EQ(ended, 1);
  thread.StopAndJoin();
  EXPECT_EQ(ended, 2);
}

}  // namespace
}  // namespace switchyard
