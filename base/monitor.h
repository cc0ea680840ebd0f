// A mutex with conditions, as absl::Mutex with Await, whose timed waits go by the monotonic clock.
//
// Why not absl::Mutex: its timed waits (and those of absl::Notification) are futex waits until a
// time of day. When somebody sets the machine's clock back by an hour while a heartbeat thread
// waits, the wait lasts an hour longer, and the lease ends. Everything that waits with a limit
// waits here; what only locks, or waits without one, may use absl::Mutex.
//
// As with absl::Mutex nobody notifies: whoever unlocks looks at the conditions of those that wait,
// and wakes those whose condition holds. Conditions read what the monitor guards, and nothing else;
// they run on any thread, under the lock, so they must be short and must not lock.
#ifndef SWITCHYARD_BASE_MONITOR_H_
#define SWITCHYARD_BASE_MONITOR_H_

#include <condition_variable>
#include <mutex>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/time/time.h"

namespace switchyard {

// Thread-safe. Time that a machine is suspended does not count.
class ABSL_LOCKABLE Monitor {
 public:
  Monitor() = default;
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION();
  void Unlock() ABSL_UNLOCK_FUNCTION();

  // Waits, unlocked, until `condition` holds.
  void Await(absl::FunctionRef<bool()> condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(this);
  // The same, for at most `timeout`. Returns whether the condition holds.
  bool AwaitWithTimeout(absl::FunctionRef<bool()> condition, absl::Duration timeout)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(this);

 private:
  struct Waiter {
    absl::FunctionRef<bool()> condition;
    std::condition_variable may_go;
  };
  void WakeThoseThatMayGo();

  std::mutex mu_;
  std::vector<Waiter*> waiters_;  // on the stacks of their threads
};

class ABSL_SCOPED_LOCKABLE MonitorLock {
 public:
  explicit MonitorLock(Monitor* monitor) ABSL_EXCLUSIVE_LOCK_FUNCTION(monitor)
      : monitor_(*monitor) {
    monitor_.Lock();
  }
  ~MonitorLock() ABSL_UNLOCK_FUNCTION() { monitor_.Unlock(); }
  MonitorLock(const MonitorLock&) = delete;
  MonitorLock& operator=(const MonitorLock&) = delete;

 private:
  Monitor& monitor_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_MONITOR_H_
