#include "base/monitor.h"

#include <vector>

#include "base/clock.h"
#include "base/thread.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(MonitorTest, UnlockWakesThoseWhoseConditionHolds) {
  Monitor monitor;
  int turn = 0;
  std::vector<int> order;
  {
    std::vector<Thread> threads;
    for (int i = 1; i <= 8; ++i) {
      threads.emplace_back("waiter", [&, i](const StopToken&) {
        MonitorLock lock(&monitor);
        monitor.Await([&] { return turn == i; });
        order.push_back(i);
        turn = i + 1;  // unlocking lets the next one go
      });
    }
    MonitorLock lock(&monitor);
    turn = 1;
  }
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST(MonitorTest, WaitingShowsOthersWhatTheCallerChanged) {
  Monitor monitor;
  bool asked = false;
  bool answered = false;
  Thread answerer("answerer", [&](const StopToken&) {
    MonitorLock lock(&monitor);
    monitor.Await([&] { return asked; });
    answered = true;
  });
  MonitorLock lock(&monitor);
  asked = true;
  EXPECT_TRUE(monitor.AwaitWithTimeout([&] { return answered; }, absl::Seconds(60)));
}

TEST(MonitorTest, TimesOutWithTheLockHeld) {
  Monitor monitor;
  const absl::Duration start = RealClock::Get().Monotonic();
  MonitorLock lock(&monitor);
  EXPECT_FALSE(monitor.AwaitWithTimeout([] { return false; }, absl::Milliseconds(20)));
  EXPECT_GE(RealClock::Get().Monotonic() - start, absl::Milliseconds(20));
  EXPECT_FALSE(monitor.AwaitWithTimeout([] { return false; }, -absl::InfiniteDuration()));
  EXPECT_TRUE(monitor.AwaitWithTimeout([] { return true; }, absl::ZeroDuration()));
}

TEST(MonitorTest, ManyThreadsLoseNoWakeup) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 2000;
  Monitor monitor;
  int next = 0;
  {
    std::vector<Thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back("turn", [&, i](const StopToken&) {
        for (int round = 0; round < kRounds; ++round) {
          MonitorLock lock(&monitor);
          monitor.Await([&] { return next % kThreads == i; });
          ++next;
        }
      });
    }
  }
  EXPECT_EQ(next, kThreads * kRounds);
}

}  // namespace
}  // namespace switchyard
