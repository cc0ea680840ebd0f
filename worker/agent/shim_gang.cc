#include "worker/agent/shim_gang.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <optional>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/thread.h"

extern char** environ;

namespace switchyard {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(60);
// For what has no descriptor to wait for: a shim that is just starting, processes being killed.
constexpr absl::Duration kPollInterval = absl::Milliseconds(10);
// A shim that does not notice the end of its ranks is stopped: it is killed.
constexpr absl::Duration kShimPatience = absl::Seconds(3);

absl::Duration Now() { return RealClock::Get().Monotonic(); }

void Pause() {
  const StopToken never;
  never.WaitForStop(kPollInterval);
}

// The child's pid. Its descriptors: /dev/null three times, and `ready` as kReadyFd.
absl::StatusOr<pid_t> Spawn(const std::string& program, const std::string& folder, int ready) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawnattr_init(&attributes);
  const absl::Cleanup destroy = [&] {
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
  };
  ::posix_spawn_file_actions_adddup2(&actions, ready, kReadyFd);
  for (int fd = 0; fd < 3; ++fd) {
    ::posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
  }
  ::posix_spawn_file_actions_addclosefrom_np(&actions, kReadyFd + 1);
  sigset_t none, all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &all);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::string program_text = program, folder_text = folder;
  char* argv[] = {program_text.data(), folder_text.data(), nullptr};
  pid_t pid = 0;
  if (const int error = ::posix_spawn(&pid, program.c_str(), &actions, &attributes, argv, environ);
      error != 0) {
    return absl::InternalError(ErrnoStatus("start", program, error).message());
  }
  return pid;
}

// What the shim says on its ready descriptor, to the end.
absl::StatusOr<std::string> ReadAnswer(int fd) {
  std::string answer;
  const absl::Duration deadline = Now() + kStartTimeout;
  while (true) {
    pollfd entry{fd, POLLIN, 0};
    const absl::Duration left = deadline - Now();
    if (left <= absl::ZeroDuration()) return absl::InternalError("the shim does not start");
    if (::poll(&entry, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1) <= 0) continue;
    char buffer[4096];
    const ssize_t n = ::read(fd, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return answer;
    answer.append(buffer, static_cast<size_t>(n));
  }
}

absl::StatusOr<LaunchPlan> ReadPlan(const std::string& folder) {
  absl::StatusOr<std::string> text = ReadFile(absl::StrCat(folder, "/", kLaunchFile));
  if (absl::IsNotFound(text.status())) text = ReadFile(absl::StrCat(folder, "/", kFencedFile));
  RETURN_IF_ERROR(text.status());
  std::optional<LaunchPlan> plan = DecodePlan(*text);
  if (!plan.has_value()) {
    return absl::NotFoundError(absl::StrCat(folder, ": the launch plan makes no sense"));
  }
  return *std::move(plan);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShimGang>> ShimGang::Launch(const std::string& shim_program,
                                                           const std::string& folder,
                                                           const LaunchPlan& plan) {
  RETURN_IF_ERROR(ReplaceFile(absl::StrCat(folder, "/", kLaunchFile), EncodePlan(plan)));
  ASSIGN_OR_RETURN(Pipe ready, MakePipe());
  // Else the child would close it on exec when it already has the wanted number.
  UniqueFd write_end(::fcntl(ready.write.get(), F_DUPFD_CLOEXEC, kReadyFd + 1));
  ready.write.Reset();
  if (!write_end.valid()) return ErrnoStatus("copy a descriptor", "", errno);
  std::unique_ptr<ShimGang> gang(new ShimGang(folder, plan));
  ASSIGN_OR_RETURN(gang->child_, Spawn(shim_program, folder, write_end.get()));
  write_end.Reset();
  const absl::StatusOr<std::string> answer = ReadAnswer(ready.read.get());
  absl::Status fault = answer.status();
  if (answer.ok() && *answer != std::string(1, '\0')) {
    fault = absl::InternalError(answer->empty() ? "the shim died" : *answer);
  }
  if (const int error = gang->status_.Open(absl::StrCat(folder, "/", kStatusFile), false);
      error != 0) {
    gang->Kill();
    gang->status_.Reset();
    ::kill(gang->child_, SIGKILL);
    ::waitpid(gang->child_, nullptr, 0);
    gang->child_ = 0;
    if (fault.ok()) fault = ErrnoStatus("map the status of", folder, error);
    return absl::InternalError(fault.message());
  }
  if (!fault.ok()) return fault;  // the destructor kills what was started
  gang->control_.Reset(ConnectControl(folder));
  return gang;
}

absl::StatusOr<std::unique_ptr<ShimGang>> ShimGang::Adopt(const std::string& folder) {
  absl::StatusOr<LaunchPlan> plan = ReadPlan(folder);
  if (!plan.ok()) return absl::NotFoundError(plan.status().message());
  std::unique_ptr<ShimGang> gang(new ShimGang(folder, *std::move(plan)));
  const std::string status_path = absl::StrCat(folder, "/", kStatusFile);
  const absl::Duration deadline = Now() + kStartTimeout;
  while (true) {
    const bool dead = gang->TakeLock();
    const int error = gang->status_.Open(status_path, false);
    if (error == 0 && gang->status_->version.load() != 0) break;
    if (dead) {
      KillAll({gang->plan_.scope, gang->plan_.cgroup});
      RemoveCgroup(gang->plan_.cgroup);
      gang->status_.Reset();
      return absl::NotFoundError(absl::StrCat(folder, ": no rank was ever started"));
    }
    if (Now() > deadline) return absl::UnavailableError("the shim does not start");
    gang->status_.Reset();
    Pause();
  }
  if (!gang->lock_.valid()) gang->control_.Reset(ConnectControl(folder));
  return gang;
}

ShimGang::~ShimGang() {
  if (status_.get() == nullptr) return;
  while (!Gone()) {
    Kill();
    Pause();
  }
}

bool ShimGang::TakeLock() {
  if (lock_.valid()) return true;
  lock_.Reset(LockAttempt(folder_));
  if (!lock_.valid()) return false;
  // A shim that was started and has not come so far finds nothing to start.
  std::rename(absl::StrCat(folder_, "/", kLaunchFile).c_str(),
              absl::StrCat(folder_, "/", kFencedFile).c_str());
  return true;
}

bool ShimGang::DiedWithoutFolder() const {
  struct stat st;
  if (::stat(folder_.c_str(), &st) == 0 || errno != ENOENT) return false;
  const pid_t shim = status_->shim_pid.load();  // the mapping outlives its file
  return shim <= 0 || (::kill(shim, 0) != 0 && errno == ESRCH);
}

void ShimGang::ReadNews() {
  char buffer[256];
  while (control_.valid()) {
    const ssize_t n = ::recv(control_.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
    if (n > 0 || (n < 0 && errno == EINTR)) continue;
    if (n < 0 && errno == EAGAIN) return;
    control_.Reset();  // it has ended, or is being killed: Gone finds out
  }
}

std::vector<pid_t> ShimGang::Pids() const {
  std::vector<pid_t> pids;
  for (size_t i = 0; i < num_ranks(); ++i) {
    if (rank(i).pid.load() != 0 && rank(i).ended.load() == 0) pids.push_back(rank(i).pid.load());
  }
  return pids;
}

absl::Status ShimGang::Send(const std::string& message) {
  if (message.size() > kMaxControlBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("tell the shim: ", message.size(), " bytes, the limit is ", kMaxControlBytes));
  }
  if (!control_.valid()) return absl::UnavailableError("tell the shim: no connection");
  if (::send(control_.get(), message.data(), message.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    return absl::UnavailableError(ErrnoStatus("tell the shim", "", errno).message());
  }
  return absl::OkStatus();
}

absl::Status ShimGang::Signal(int signal) {
  const int32_t number = signal;
  std::string message = "S";
  message.append(reinterpret_cast<const char*>(&number), sizeof(number));
  return Send(message);
}

absl::Status ShimGang::SendFrame(int rank, const Json& frame) {
  const int32_t number = rank;
  std::string message = "F";
  message.append(reinterpret_cast<const char*>(&number), sizeof(number));
  return Send(message + DumpJson(frame));
}

absl::Status ShimGang::TellDeadline() { return Send("D"); }

void ShimGang::Kill() {
  const Containment containment{plan_.scope, plan_.cgroup};
  KillAll(containment);
  if (!IsEmpty(containment)) return;
  if (!killed_) emptied_ = Now();
  killed_ = true;
  if (status_.get() == nullptr || Now() < emptied_ + kShimPatience) return;
  // One that has not come so far as to note its number is known as a child only. Of an adopted one
  // the lock says that it lives, so that the number is its own. 0 would be this process's group.
  const pid_t shim = child_ != 0 ? child_ : TakeLock() ? 0 : status_->shim_pid.load();
  if (shim > 0) ::kill(shim, SIGKILL);
}

bool ShimGang::Gone() {
  if (child_ != 0) {
    int unused = 0;
    if (::waitpid(child_, &unused, WNOHANG) != child_) return false;
    child_ = 0;
  }
  if (!TakeLock() && !DiedWithoutFolder()) return false;
  const Containment containment{plan_.scope, plan_.cgroup};
  if (IsEmpty(containment)) {
    // Now, not when the gang is destroyed: an agent killed in between would leave the folder.
    RemoveCgroup(plan_.cgroup);
    return true;
  }
  KillAll(containment);
  return false;
}

}  // namespace switchyard
