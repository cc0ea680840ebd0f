// What a command talks to: output, the environment, the terminal's shape, Ctrl-C. A test gives its
// own.
#ifndef SWITCHYARD_CLIENT_TERMINAL_H_
#define SWITCHYARD_CLIENT_TERMINAL_H_

#include <functional>
#include <optional>
#include <ostream>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/monitor.h"

namespace switchyard {

// Ctrl-C, told to whoever waits. Thread-safe.
class Interrupt {
 public:
  void Trigger() ABSL_LOCKS_EXCLUDED(mu_);
  bool triggered() const ABSL_LOCKS_EXCLUDED(mu_);
  // Waits at most `timeout`; true: triggered.
  bool WaitFor(absl::Duration timeout) const ABSL_LOCKS_EXCLUDED(mu_);
  // `handler` is called once, from the thread that triggers, or at once when that has happened.
  // Cleared with nullptr, after which it is not running any more.
  void SetHandler(std::function<void()> handler) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  mutable Monitor mu_;
  bool triggered_ ABSL_GUARDED_BY(mu_) = false;
  std::function<void()> handler_ ABSL_GUARDED_BY(mu_);
};

struct Terminal {
  std::ostream& out;
  std::ostream& err;
  Interrupt& interrupt;
  bool redraws = false;        // `out` is a terminal: lines may be redrawn in place
  std::function<int()> width;  // columns, asked for at each redraw
  std::function<std::optional<std::string>(const std::string&)> env;
  std::function<absl::Time()> now;
};

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_TERMINAL_H_
