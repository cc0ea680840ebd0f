// Named places in production code where a test can make this process crash, stop, fail, wait or
// write only half. They are always compiled in and off unless SWITCHYARD_FAILPOINTS turns them on:
//
//   SWITCHYARD_FAILPOINTS="store.before_commit=crash@3;publish.after_rename=delay(200ms)"
//
//   crash         SIGKILL to this process
//   stop          SIGSTOP to this process: goes on when someone sends SIGCONT
//   delay(TIME)   waits, then goes on
//   error(ERRNO)  the operation fails; EIO (also without parentheses), ENOSPC, EMFILE or ENOMEM
//   partial       half of the bytes are written, then SIGKILL: a torn write
//
// An action happens at every hit, `@n` only at the n-th hit, `@n+` from the n-th on. A name that
// does not exist, and an action that a place cannot do, are errors at start.
//
// A place is a variable at namespace scope of the .cc file that passes it:
//
//   Failpoint after_rename("publish.after_rename", FailpointKind::kEvent);
//   ...
//   after_rename.Pass();
//
// When off, a pass costs one relaxed load. Thread-safe, except for ArmFailpoints.
#ifndef SWITCHYARD_BASE_FAILPOINT_H_
#define SWITCHYARD_BASE_FAILPOINT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace switchyard {

enum class FailpointKind {
  kEvent,     // between two effects: crash, stop, delay
  kFallible,  // before an operation that may fail: also error
  kWrite,     // before bytes are written: also error and partial
};

class Failpoint {
 public:
  Failpoint(const char* name, FailpointKind kind);  // `name` lives as long as the process
  Failpoint(const Failpoint&) = delete;
  Failpoint& operator=(const Failpoint&) = delete;

  const char* name() const { return name_; }
  FailpointKind kind() const { return kind_; }

  // kEvent.
  void Pass() {
    if (armed_.load(std::memory_order_relaxed)) Act(nullptr);
  }
  // kFallible and kWrite: the errno to fail with, 0: go on.
  int Errno() { return armed_.load(std::memory_order_relaxed) ? Act(nullptr) : 0; }
  // The same as a Status.
  absl::Status Check();
  // kWrite: as Errno; `*torn`, when true, asks the caller to write the first half of the bytes and
  // then call CrashNow.
  int ErrnoForWrite(bool* torn) { return armed_.load(std::memory_order_relaxed) ? Act(torn) : 0; }

 private:
  friend absl::Status ArmFailpoints(absl::string_view text);
  friend std::vector<std::string> FailpointNames();

  enum class Action { kCrash, kStop, kDelay, kError, kPartial };
  static absl::Status ParseOne(absl::string_view entry);
  int Act(bool* torn);

  const char* const name_;
  const FailpointKind kind_;
  Failpoint* const next_;  // all places of this program, newest first

  std::atomic<bool> armed_{false};
  std::atomic<int64_t> hits_{0};
  // Written by ArmFailpoints only.
  Action action_ = Action::kCrash;
  absl::Duration delay_;
  int errno_ = 0;
  int64_t first_hit_ = 1;
  bool only_once_ = false;
};

// Turns places on. Call once, before threads start. Errors: InvalidArgument with all faults, one a
// line; an unknown name with the nearest known one.
absl::Status ArmFailpoints(absl::string_view text);

// ArmFailpoints with the variable SWITCHYARD_FAILPOINTS; each place turned on is logged, so that
// nobody leaves one on unseen. For main.cc.
absl::Status ArmFailpointsFromEnvironment();

// The names of this program's places with what each can do, sorted; one a line for
// --print-failpoints.
std::vector<std::string> FailpointNames();

// SIGKILL to this process.
[[noreturn]] void CrashNow();

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_FAILPOINT_H_
