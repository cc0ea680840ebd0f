// A named thread that is told to stop and joined by its destructor. Declare it as the last member,
// so that it is joined before what it reads is destroyed.
#ifndef SWITCHYARD_BASE_THREAD_H_
#define SWITCHYARD_BASE_THREAD_H_

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/monitor.h"

namespace switchyard {

// Handed to the thread's function: asks, or waits, for the order to stop. Thread-safe.
class StopToken {
 public:
  bool StopRequested() const ABSL_LOCKS_EXCLUDED(mu_) {
    MonitorLock lock(&mu_);
    return stop_;
  }
  // Waits for at most `timeout`, by the monotonic clock; true: stop.
  bool WaitForStop(absl::Duration timeout) const ABSL_LOCKS_EXCLUDED(mu_) {
    MonitorLock lock(&mu_);
    return mu_.AwaitWithTimeout([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stop_; },
                                timeout);
  }

 private:
  friend class Thread;
  void Stop() ABSL_LOCKS_EXCLUDED(mu_) {
    MonitorLock lock(&mu_);
    stop_ = true;
  }

  mutable Monitor mu_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
};

class Thread {
 public:
  Thread() = default;
  // `name` (at most 15 characters are visible in ps and gdb). `body` should return soon after a
  // stop is requested.
  Thread(const std::string& name, std::function<void(const StopToken&)> body);
  ~Thread() { StopAndJoin(); }
  Thread(Thread&&) = default;
  Thread& operator=(Thread&& other);

  // Lets the thread stop without waiting for it. Idempotent.
  void RequestStop();
  // Idempotent. Not from the thread itself.
  void StopAndJoin();
  bool joinable() const { return thread_.joinable(); }

 private:
  std::unique_ptr<StopToken> token_;
  std::thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_THREAD_H_
