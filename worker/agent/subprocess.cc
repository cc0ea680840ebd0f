#include "worker/agent/subprocess.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

extern char** environ;

namespace switchyard {
namespace {

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& s : strings) pointers.push_back(const_cast<char*>(s.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

struct ChildPlan {
  char* const* argv;
  char* const* envp;
  int null_fd;
  int stdout_fd;
  int stderr_fd;
  int inherited_fd;
  int error_fd;  // gets errno of the step that failed; closed by exec
  pid_t parent;
};

// Between fork and exec of a process with threads: only async-signal-safe calls. The descriptors of
// the plan are all above kInheritedFd, so that no dup2 overwrites another.
[[noreturn]] void RunChild(const ChildPlan& plan) {
  auto fail = [&plan] {
    const int error = errno;
    [[maybe_unused]] const ssize_t n = ::write(plan.error_fd, &error, sizeof(error));
    ::_exit(127);
  };
  ::setpgid(0, 0);
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) fail();
  if (::getppid() != plan.parent) ::_exit(127);  // the parent died before prctl took effect
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (::dup2(plan.null_fd, STDIN_FILENO) < 0 || ::dup2(plan.stdout_fd, STDOUT_FILENO) < 0 ||
      ::dup2(plan.stderr_fd, STDERR_FILENO) < 0) {
    fail();
  }
  if (plan.inherited_fd >= 0 && ::dup2(plan.inherited_fd, kInheritedFd) < 0) fail();
  // Libraries may have opened descriptors without close-on-exec.
  const unsigned first = plan.inherited_fd >= 0 ? kInheritedFd + 1 : kInheritedFd;
  ::syscall(SYS_close_range, first, ~0u, CLOSE_RANGE_CLOEXEC);
  ::execve(plan.argv[0], plan.argv, plan.envp);
  fail();
  ::_exit(127);
}

// A close-on-exec copy of `fd` above kInheritedFd.
absl::StatusOr<UniqueFd> Above(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, kInheritedFd + 1));
  if (!copy.valid()) return ErrnoStatus("copy a descriptor", "", errno);
  return copy;
}

}  // namespace

std::vector<std::string> MergedEnvironment(
    const std::vector<std::pair<std::string, std::string>>& changes) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    bool replaced = false;
    for (const auto& [name, value] : changes) {
      replaced |= text.compare(0, name.size() + 1, name + "=") == 0;
    }
    if (!replaced) result.push_back(text);
  }
  for (const auto& [name, value] : changes) result.push_back(absl::StrCat(name, "=", value));
  return result;
}

absl::StatusOr<std::unique_ptr<Subprocess>> Subprocess::Start(const SubprocessOptions& options) {
  const std::string& program = options.argv.at(0);
  if (::access(program.c_str(), X_OK) != 0) return ErrnoStatus("start", program, errno);

  ASSIGN_OR_RETURN(Pipe out, MakePipe());
  ASSIGN_OR_RETURN(Pipe err, MakePipe());
  ASSIGN_OR_RETURN(Pipe error, MakePipe());
  UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null.valid()) return ErrnoStatus("open", "/dev/null", errno);
  for (int fd : {out.read.get(), err.read.get()}) ::fcntl(fd, F_SETFL, O_NONBLOCK);

  ASSIGN_OR_RETURN(const UniqueFd child_null, Above(null.get()));
  ASSIGN_OR_RETURN(const UniqueFd child_out, Above(out.write.get()));
  ASSIGN_OR_RETURN(const UniqueFd child_err, Above(err.write.get()));
  ASSIGN_OR_RETURN(UniqueFd child_error, Above(error.write.get()));
  UniqueFd child_inherited;
  if (options.inherited_fd >= 0) {
    ASSIGN_OR_RETURN(child_inherited, Above(options.inherited_fd));
  }
  const std::vector<std::string> environment = MergedEnvironment(options.environment);
  const std::vector<char*> argv = Pointers(options.argv);
  const std::vector<char*> envp = Pointers(environment);
  const ChildPlan plan{argv.data(),     envp.data(),           child_null.get(),  child_out.get(),
                       child_err.get(), child_inherited.get(), child_error.get(), ::getpid()};

  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus("fork for", program, errno);
  if (pid == 0) RunChild(plan);

  ::setpgid(pid, pid);  // both sides: whoever comes first
  std::unique_ptr<Subprocess> process(new Subprocess(pid));
  error.write.Reset();
  child_error.Reset();
  int exec_error = 0;
  ssize_t n;
  do {
    n = ::read(error.read.get(), &exec_error, sizeof(exec_error));
  } while (n < 0 && errno == EINTR);
  if (n == sizeof(exec_error)) return ErrnoStatus("start", program, exec_error);

  process->pidfd_.Reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  process->stdout_ = std::move(out.read);
  process->stderr_ = std::move(err.read);
  return process;
}

Subprocess::~Subprocess() {
  if (exit_status_.has_value()) return;
  SignalGroup(SIGKILL);
  siginfo_t info;
  while (::waitid(P_PID, pid_, &info, WEXITED | WNOWAIT) != 0 && errno == EINTR) {
  }
  Reap();
}

bool Subprocess::HasEnded() const {
  if (exit_status_.has_value()) return true;
  siginfo_t info;
  info.si_pid = 0;
  const int result = ::waitid(P_PID, pid_, &info, WEXITED | WNOWAIT | WNOHANG);
  return result == 0 && info.si_pid == pid_;
}

void Subprocess::SignalGroup(int signal) const {
  if (!exit_status_.has_value()) ::kill(-pid_, signal);
}

ExitStatus Subprocess::Reap() {
  if (exit_status_.has_value()) return *exit_status_;
  SY_CHECK(HasEnded()) << "Reap of the live process " << pid_;
  SignalGroup(SIGKILL);  // its zombie still holds the group's number
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  ExitStatus result;
  if (WIFSIGNALED(status)) {
    result.signal = WTERMSIG(status);
  } else {
    result.code = WEXITSTATUS(status);
  }
  exit_status_ = result;
  return result;
}

}  // namespace switchyard
