// One child process in a process group of its own, with its output on pipes.
#ifndef SWITCHYARD_WORKER_AGENT_SUBPROCESS_H_
#define SWITCHYARD_WORKER_AGENT_SUBPROCESS_H_

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fd.h"
#include "worker/agent/exit_status.h"

namespace switchyard {

// NAME=value: this process's environment with `changes` added to, or replacing, its variables.
std::vector<std::string> MergedEnvironment(
    const std::vector<std::pair<std::string, std::string>>& changes);

struct SubprocessOptions {
  std::vector<std::string> argv;  // argv[0]: path of the program, not searched in PATH
  // Added to, or replacing, the parent's variables.
  std::vector<std::pair<std::string, std::string>> environment;
  // Becomes descriptor kInheritedFd of the child; -1: none. Stays the caller's.
  int inherited_fd = -1;
};
inline constexpr int kInheritedFd = 3;

// Not thread-safe. The child is killed by the kernel (PR_SET_PDEATHSIG) when the *thread* that
// called Start ends: call it on a thread that outlives the child.
class Subprocess {
 public:
  // The child has stdin from /dev/null, default signal handlers, an empty signal mask, no other
  // descriptor of ours, and leads a new process group.
  // Errors: NotFound, PermissionDenied, InvalidArgument: the program cannot be executed; the
  // message names it. ResourceExhausted: no process or descriptor left.
  static absl::StatusOr<std::unique_ptr<Subprocess>> Start(const SubprocessOptions& options);

  // Kills the group and reaps, when that has not been done.
  ~Subprocess();
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;

  pid_t pid() const { return pid_; }
  // Read ends, non-blocking. The owner may move them out.
  UniqueFd& stdout_fd() { return stdout_; }
  UniqueFd& stderr_fd() { return stderr_; }
  // A pidfd: readable for poll(2) once the child has ended. -1 where the kernel has none: then call
  // HasEnded from time to time.
  int exit_fd() const { return pidfd_.get(); }

  // Whether the child has ended. It stays a zombie, so that pid and group cannot be reused.
  bool HasEnded() const;
  // To every process of the group. No effect after Reap.
  void SignalGroup(int signal) const;
  // Precondition: HasEnded. Kills what is left of the group, then collects the status. Idempotent.
  ExitStatus Reap();
  const std::optional<ExitStatus>& exit_status() const { return exit_status_; }

 private:
  explicit Subprocess(pid_t pid) : pid_(pid) {}

  const pid_t pid_;
  UniqueFd pidfd_;
  UniqueFd stdout_;
  UniqueFd stderr_;
  std::optional<ExitStatus> exit_status_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_SUBPROCESS_H_
