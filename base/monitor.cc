#include "base/monitor.h"

#include <algorithm>
#include <chrono>

namespace switchyard {
namespace {

// Longer than any program runs, and far from what overflows a time point.
constexpr absl::Duration kLongest = absl::Hours(24 * 365);

}  // namespace

void Monitor::Lock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mu_.lock(); }

void Monitor::Unlock() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  WakeThoseThatMayGo();
  mu_.unlock();
}

void Monitor::WakeThoseThatMayGo() {
  // Under the lock, without which a waiter cannot leave: none of them is gone.
  for (Waiter* const waiter : waiters_) {
    if (waiter->condition()) waiter->may_go.notify_one();
  }
}

void Monitor::Await(absl::FunctionRef<bool()> condition) {
  while (!AwaitWithTimeout(condition, kLongest)) {
  }
}

bool Monitor::AwaitWithTimeout(absl::FunctionRef<bool()> condition, absl::Duration timeout) {
  if (condition()) return true;
  if (timeout <= absl::ZeroDuration()) return false;
  // steady_clock: glibc's pthread_cond_clockwait with CLOCK_MONOTONIC.
  const auto deadline =
      std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(std::min(timeout, kLongest));
  WakeThoseThatMayGo();  // for what the caller has changed under its lock
  Waiter waiter{condition, {}};
  waiters_.push_back(&waiter);
  std::unique_lock<std::mutex> lock(mu_, std::adopt_lock);
  bool holds = false;
  while (!holds && waiter.may_go.wait_until(lock, deadline) == std::cv_status::no_timeout) {
    holds = condition();
  }
  holds = holds || condition();  // it may have come true in the last moment
  lock.release();                // the caller's
  waiters_.erase(std::find(waiters_.begin(), waiters_.end(), &waiter));
  return holds;
}

}  // namespace switchyard
