// Time as an argument, so that tests move it. Leases and deadlines use the monotonic reading; the
// wall clock is for display only.
#ifndef SWITCHYARD_BASE_CLOCK_H_
#define SWITCHYARD_BASE_CLOCK_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace switchyard {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Wall-clock time, for people.
  virtual absl::Time Now() = 0;
  // Time since an arbitrary start; never goes back, counts suspended time (CLOCK_BOOTTIME).
  virtual absl::Duration Monotonic() = 0;
};

class RealClock final : public Clock {
 public:
  absl::Time Now() override;
  absl::Duration Monotonic() override;
  static RealClock& Get();
};

// Stands still until told to move.
class SimClock final : public Clock {
 public:
  explicit SimClock(absl::Time start = absl::UnixEpoch() + absl::Hours(24)) : now_(start) {}
  absl::Time Now() override;
  absl::Duration Monotonic() override;
  // Moves both readings.
  void Advance(absl::Duration by);
  // Moves the wall clock only, as an administrator or NTP would.
  void JumpWall(absl::Duration by);

 private:
  absl::Mutex mu_;
  absl::Time now_ ABSL_GUARDED_BY(mu_);
  absl::Duration monotonic_ ABSL_GUARDED_BY(mu_) = absl::ZeroDuration();
};

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_CLOCK_H_
