#include "server/api/stream_pump.h"

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

// Always has more to send, as a log follower of a flood: is woken again before its step ends.
class BusyStream final : public PumpedStream {
 public:
  explicit BusyStream(StreamPump& pump) : pump_(pump), id_(pump.NewId()) {
    pump.Add(id_, StreamKind::kWatch, this, "");
  }
  absl::optional<absl::Duration> Step(const Wakeup& wakeup) override {
    if (wakeup.stopping) return absl::nullopt;
    pump_.Wake(id_);
    return absl::InfiniteDuration();
  }

 private:
  StreamPump& pump_;
  const uint64_t id_;
};

// Notifies at its third step; the second and third are timers that ran out.
class TimedStream final : public PumpedStream {
 public:
  explicit TimedStream(StreamPump& pump) { pump.Add(pump.NewId(), StreamKind::kWatch, this, ""); }
  absl::optional<absl::Duration> Step(const Wakeup& wakeup) override {
    if (wakeup.stopping) return absl::nullopt;
    if (++steps_ == 3) third.Notify();
    return RealClock::Get().Monotonic() + absl::Milliseconds(1);
  }
  absl::Notification third;

 private:
  int steps_ = 0;
};

TEST(StreamPumpTest, BusyStreamsDoNotStarveLaterOnes) {
  StreamPump pump(RealClock::Get());
  BusyStream first(pump);
  BusyStream second(pump);
  TimedStream quiet(pump);
  EXPECT_TRUE(quiet.third.WaitForNotificationWithTimeout(absl::Seconds(10)));
  pump.Stop();
}

TEST(StreamPumpTest, RefusesStreamsOnceStopped) {
  StreamPump pump(RealClock::Get());
  pump.Stop();
  EXPECT_FALSE(pump.Add(pump.NewId(), StreamKind::kWatch, nullptr, ""));
  EXPECT_EQ(pump.Count(StreamKind::kWatch), 0);
}

}  // namespace
}  // namespace switchyard
