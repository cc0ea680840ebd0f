#include "base/clock.h"

#include <time.h>

#include "absl/time/clock.h"

namespace switchyard {

absl::Time RealClock::Now() { return absl::Now(); }

absl::Duration RealClock::Monotonic() {
  timespec ts;
  clock_gettime(CLOCK_BOOTTIME, &ts);
  return absl::DurationFromTimespec(ts);
}

RealClock& RealClock::Get() {
  static RealClock* clock = new RealClock;
  return *clock;
}

absl::Time SimClock::Now() {
  absl::MutexLock lock(&mu_);
  return now_;
}

absl::Duration SimClock::Monotonic() {
  absl::MutexLock lock(&mu_);
  return monotonic_;
}

void SimClock::Advance(absl::Duration by) {
  absl::MutexLock lock(&mu_);
  now_ += by;
  monotonic_ += by;
}

void SimClock::JumpWall(absl::Duration by) {
  absl::MutexLock lock(&mu_);
  now_ += by;
}

}  // namespace switchyard
