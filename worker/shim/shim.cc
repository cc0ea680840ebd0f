#include "worker/shim/shim.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "worker/shim/attempt_files.h"
#include "worker/shim/containment.h"
#include "worker/shim/launch_plan.h"
#include "worker/shim/rank_io.h"

namespace switchyard {
namespace {

constexpr int64_t kMillisecond = 1'000'000;
// How long output and frames are awaited from processes that outlived their rank.
constexpr int64_t kOutputGrace = 1000 * kMillisecond;
// How often a full disk is tried again, and an attempt that is being killed is looked at.
constexpr int64_t kRetryInterval = 50 * kMillisecond;
// One stream gets so much of a turn, so that a flood does not starve the others.
constexpr size_t kTurnBytes = 1 << 20;

int64_t Now() {
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

bool ReadWhole(const std::string& path, std::string* text) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  char buffer[64 << 10];
  ssize_t n;
  while ((n = ::read(fd, buffer, sizeof(buffer))) > 0 || (n < 0 && errno == EINTR)) {
    if (n > 0) text->append(buffer, static_cast<size_t>(n));
  }
  ::close(fd);
  return n == 0;
}

std::string Because(const std::string& what) { return what + ": " + std::strerror(errno); }

struct Rank {
  int number = 0;
  pid_t pid = 0;
  RankStatus* status = nullptr;
  OutputStream out;
  OutputStream err;
  RankLink link;
  bool ended = false;
  int64_t output_deadline = 0;  // once it has ended
};

class Shim {
 public:
  explicit Shim(std::string folder) : folder_(std::move(folder)) {}

  // Empty, or why not all ranks could be started. Those that were are killed by Run.
  std::string Start();
  int Run();
  bool is_joined() const { return lock_ < 0 && lock_error_ == EAGAIN; }
  bool has_started() const { return timer_ >= 0; }

 private:
  std::string StartRank(const RankPlan& plan, Rank& rank);
  [[noreturn]] void RunChild(const RankPlan& plan, const int fds[4], int cgroup_fd, int error_fd,
                             pid_t parent);
  void ReapChildren();
  void NoteEnd(Rank& rank, int status);
  void Pump();
  void HandleControl();
  void HandleMessage(std::string_view message);
  void ArmDeadline();
  void CheckDeadline();
  void Tell();
  int64_t WaitTime() const;
  bool AllClosed() const;

  const std::string folder_;
  int lock_ = -1;
  int lock_error_ = 0;
  LaunchPlan plan_;
  Containment containment_;
  MappedFile<ShimStatus> status_;
  MappedFile<LeaseFile> lease_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  int signals_ = -1;
  int timer_ = -1;
  int64_t armed_ = 0;  // the time that the timer is set to
  int listener_ = -1;
  int agent_ = -1;  // the newest connection
  bool news_ = false;
  bool kill_ = false;      // everything is to go
  int64_t killed_at_ = 0;  // when KillAll was called last
};

std::string Shim::Start() {
  lock_ = LockAttempt(folder_);
  lock_error_ = errno;
  if (lock_ < 0) return Because("lock " + folder_);
  std::string text;
  // An agent that found no shim alive has taken the plan away: this one came too late.
  if (!ReadWhole(folder_ + "/" + kLaunchFile, &text)) return Because("read the launch plan");
  const std::optional<LaunchPlan> plan = DecodePlan(text);
  if (!plan || plan->ranks.empty() || plan->ranks.size() > ShimStatus::kMaxRanks) {
    return "the launch plan makes no sense";
  }
  plan_ = *plan;
  containment_ = {plan_.scope, plan_.cgroup};
  if (const int error = lease_.Open(plan_.lease_path, false); error != 0) {
    errno = error;
    return Because("map " + plan_.lease_path);
  }
  if (const int error = status_.Open(folder_ + "/" + kStatusFile, true); error != 0) {
    errno = error;
    return Because("make the status file");
  }
  if (status_->version.load() != 0) return "the attempt was started before";
  listener_ = ListenControl(folder_);
  if (listener_ < 0) return Because("listen at " + folder_ + "/" + kControlSocket);
  // Processes whose parents die become children of this one, and are reaped.
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGCHLD, SIGTERM}) ::sigaddset(&set, signal);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  for (const int signal : {SIGINT, SIGHUP, SIGPIPE}) ::signal(signal, SIG_IGN);
  signals_ = ::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  timer_ = ::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
  if (signals_ < 0 || timer_ < 0) return Because("make descriptors");

  status_->shim_pid.store(::getpid());
  status_->num_ranks.store(static_cast<uint32_t>(plan_.ranks.size()));
  status_->version.store(ShimStatus::kVersion);
  for (size_t i = 0; i < plan_.ranks.size(); ++i) {
    Rank& rank = *ranks_.emplace_back(std::make_unique<Rank>());
    rank.number = plan_.ranks[i].rank;
    rank.status = &status_->ranks[i];
    if (std::string fault = StartRank(plan_.ranks[i], rank); !fault.empty()) {
      kill_ = true;
      ranks_.pop_back();
      return fault;
    }
  }
  return "";
}

// Between fork and exec. One thread, so that any call is allowed; the descriptors are all above 3.
void Shim::RunChild(const RankPlan& plan, const int fds[4], int cgroup_fd, int error_fd,
                    pid_t parent) {
  const auto fail = [error_fd] {
    const int error = errno;
    [[maybe_unused]] const ssize_t n = ::write(error_fd, &error, sizeof(error));
    ::_exit(127);
  };
  ::setsid();
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) fail();
  if (::getppid() != parent) ::_exit(127);  // it died before prctl took effect
  if (cgroup_fd >= 0 && ::write(cgroup_fd, "0", 1) != 1) fail();
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int i = 0; i < 4; ++i) {
    if (::dup2(fds[i], i) < 0) fail();
  }
  ::syscall(SYS_close_range, kLinkFd + 1, ~0u, CLOSE_RANGE_CLOEXEC);
  std::vector<char*> argv, environment;
  for (const std::string& word : plan.argv) argv.push_back(const_cast<char*>(word.c_str()));
  for (const std::string& word : plan.environment) {
    environment.push_back(const_cast<char*>(word.c_str()));
  }
  argv.push_back(nullptr);
  environment.push_back(nullptr);
  ::execve(argv[0], argv.data(), environment.data());
  fail();
  ::_exit(127);
}

std::string Shim::StartRank(const RankPlan& plan, Rank& rank) {
  std::string config;
  if (!ReadWhole(RankFile(folder_, plan.rank, "config.json"), &config)) {
    return Because("read the config of rank " + std::to_string(plan.rank));
  }
  int out[2], err[2], link[2], error[2];
  if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0 ||
      ::pipe2(error, O_CLOEXEC) != 0 ||
      ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, link) != 0) {
    return Because("make pipes");
  }
  for (const int fd : {out[0], err[0]}) ::fcntl(fd, F_SETFL, O_NONBLOCK);
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  int cgroup = -1;
  if (!plan_.cgroup.empty()) {
    cgroup = ::open((plan_.cgroup + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC);
    if (cgroup < 0) return Because("open " + plan_.cgroup);
  }
  int opened = rank.out.Open(out[0], RankFile(folder_, plan.rank, "stdout"), &rank.status->out);
  if (opened == 0) {
    opened = rank.err.Open(err[0], RankFile(folder_, plan.rank, "stderr"), &rank.status->err);
  }
  if (opened == 0) {
    opened =
        rank.link.Open(link[0], RankFile(folder_, plan.rank, "frames"), &rank.status->frames_size);
  }
  if (opened != 0) {
    errno = opened;
    return Because("make the files of rank " + std::to_string(plan.rank));
  }
  const pid_t parent = ::getpid();
  rank.pid = ::fork();
  if (rank.pid < 0) return Because("fork");
  if (rank.pid == 0) {
    const int fds[4] = {null, out[1], err[1], link[1]};
    RunChild(plan, fds, cgroup, error[1], parent);
  }
  for (const int fd : {out[1], err[1], link[1], error[1], null}) ::close(fd);
  if (cgroup >= 0) ::close(cgroup);
  int exec_error = 0;
  ssize_t n;
  do {
    n = ::read(error[0], &exec_error, sizeof(exec_error));
  } while (n < 0 && errno == EINTR);
  ::close(error[0]);
  if (n == sizeof(exec_error)) {
    ::waitpid(rank.pid, nullptr, 0);
    errno = exec_error;
    return Because("start " + plan.argv[0]);
  }
  rank.status->pid.store(rank.pid);
  rank.link.Queue(config);
  return "";
}

void Shim::NoteEnd(Rank& rank, int status) {
  rank.ended = true;
  rank.output_deadline = Now() + kOutputGrace;
  if (WIFSIGNALED(status)) {
    rank.status->signal.store(WTERMSIG(status));
  } else {
    rank.status->code.store(WEXITSTATUS(status));
  }
  rank.status->ended.store(1);
  // What it said last is in the pipes; it counts as much as how it ended.
  rank.out.Drain(kTurnBytes);
  rank.err.Drain(kTurnBytes);
  rank.link.Drain(kTurnBytes);
  rank.err.Sync();
  rank.link.Sync();
  status_.Sync();
}

void Shim::ReapChildren() {
  while (true) {
    siginfo_t info{};
    if (::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) return;
    const pid_t pid = info.si_pid;
    const auto rank = std::find_if(ranks_.begin(), ranks_.end(),
                                   [pid](const auto& r) { return r->pid == pid && !r->ended; });
    // Its session's number cannot be another's as long as it is a zombie.
    if (rank != ranks_.end()) ::kill(-pid, SIGKILL);
    int status = 0;
    ::waitpid(pid, &status, 0);
    if (rank != ranks_.end()) NoteEnd(**rank, status);
    news_ = true;
  }
}

void Shim::Pump() {
  bool full = false;
  const int64_t now = Now();
  for (const auto& rank : ranks_) {
    if (rank->status->closed.load() != 0) continue;
    for (OutputStream* stream : {&rank->out, &rank->err}) {
      if (stream->waits()) news_ |= stream->Flush();
      if (!stream->at_end()) news_ |= stream->Drain(kTurnBytes);
      full |= stream->waits();
    }
    if (rank->link.waits()) news_ |= rank->link.Flush();
    if (!rank->link.at_end()) news_ |= rank->link.Drain(kTurnBytes);
    if (rank->link.wants_write()) rank->link.Write();
    full |= rank->link.waits();
    if (!rank->ended) continue;
    if (now >= rank->output_deadline) {
      rank->out.Close();
      rank->err.Close();
      rank->link.Close();
    }
    if (rank->out.at_end() && rank->err.at_end() && rank->link.at_end() && !rank->out.waits() &&
        !rank->err.waits() && !rank->link.waits()) {
      rank->status->closed.store(1);
      news_ = true;
    }
  }
  if ((status_->disk_full.load() != 0) != full) news_ = true;
  status_->disk_full.store(full ? 1 : 0);
}

void Shim::HandleMessage(std::string_view message) {
  int32_t number = 0;
  if (message.size() < 1 + sizeof(number)) return;
  std::memcpy(&number, message.data() + 1, sizeof(number));
  if (message[0] == 'S') {
    for (const auto& rank : ranks_) {
      if (!rank->ended) ::kill(-rank->pid, number);
    }
  } else if (message[0] == 'F') {
    for (const auto& rank : ranks_) {
      if (rank->number == number) rank->link.Queue(message.substr(1 + sizeof(number)));
    }
  }
}

void Shim::HandleControl() {
  while (true) {
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) break;
    ucred peer{};
    socklen_t size = sizeof(peer);
    const bool known = ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
                       (peer.uid == ::geteuid() || peer.uid == 0);
    if (!known) {
      ::close(fd);
      continue;
    }
    if (agent_ >= 0) ::close(agent_);  // its agent is dead
    agent_ = fd;
    news_ = true;
  }
  static char buffer[kMaxControlBytes];
  while (agent_ >= 0) {
    const ssize_t n = ::recv(agent_, buffer, sizeof(buffer), MSG_DONTWAIT);
    if (n > 0) {
      HandleMessage(std::string_view(buffer, static_cast<size_t>(n)));
    } else if (n < 0 && errno == EINTR) {
      continue;
    } else if (n < 0 && errno == EAGAIN) {
      return;
    } else {
      ::close(agent_);
      agent_ = -1;
    }
  }
}

void Shim::Tell() {
  if (!news_ || agent_ < 0) return;
  // A full socket holds news that the agent has not read yet: as good as this one.
  ::send(agent_, "n", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  news_ = false;
}

void Shim::ArmDeadline() {
  armed_ = std::max<int64_t>(lease_->deadline.load(), 1);
  itimerspec spec{};
  spec.it_value.tv_sec = armed_ / 1'000'000'000;
  spec.it_value.tv_nsec = armed_ % 1'000'000'000;
  ::timerfd_settime(timer_, TFD_TIMER_ABSTIME, &spec, nullptr);
}

void Shim::CheckDeadline() {
  uint64_t expirations = 0;
  if (::read(timer_, &expirations, sizeof(expirations)) != sizeof(expirations)) return;
  if (Now() < lease_->deadline.load()) {  // the agent has moved it on
    ArmDeadline();
    return;
  }
  status_->deadline_fired.store(1);
  kill_ = true;
}

bool Shim::AllClosed() const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [](const auto& rank) { return rank->status->closed.load() != 0; });
}

int64_t Shim::WaitTime() const {
  bool retry = kill_;
  int64_t wait = INT64_MAX;
  for (const auto& rank : ranks_) {
    if (rank->status->closed.load() != 0) continue;
    retry |= rank->out.waits() || rank->err.waits() || rank->link.waits();
    if (rank->ended) wait = std::min(wait, std::max<int64_t>(rank->output_deadline - Now(), 0));
  }
  return retry ? std::min(wait, kRetryInterval) : wait;
}

int Shim::Run() {
  ArmDeadline();
  std::vector<pollfd> fds;
  while (true) {
    if (AllClosed()) kill_ = true;  // what is left has no rank any more
    if (kill_ && Now() - killed_at_ >= kRetryInterval) {
      killed_at_ = Now();
      KillAll(containment_);
      ReapChildren();
      Pump();
      if (AllClosed() && IsEmpty(containment_)) break;
    }
    Tell();
    fds.assign({{signals_, POLLIN, 0}, {timer_, POLLIN, 0}, {listener_, POLLIN, 0}});
    fds.push_back({agent_, POLLIN, 0});  // ignored when -1
    for (const auto& rank : ranks_) {
      fds.push_back({rank->out.fd(), POLLIN, 0});
      fds.push_back({rank->err.fd(), POLLIN, 0});
      short events = rank->link.wants_read() ? POLLIN : 0;
      if (rank->link.wants_write()) events = static_cast<short>(events | POLLOUT);
      fds.push_back({rank->link.fd(), events, 0});
    }
    const int64_t wait = WaitTime();
    timespec timeout{};
    timeout.tv_sec = wait / 1'000'000'000;
    timeout.tv_nsec = wait % 1'000'000'000;
    ::ppoll(fds.data(), fds.size(), wait == INT64_MAX ? nullptr : &timeout, nullptr);
    signalfd_siginfo signal{};
    while (::read(signals_, &signal, sizeof(signal)) == sizeof(signal)) {
      if (signal.ssi_signo == SIGTERM) kill_ = true;
    }
    ReapChildren();
    CheckDeadline();
    HandleControl();
    // Later ones are found when the timer rings; an earlier one the agent tells ('D').
    if (lease_->deadline.load() < armed_) ArmDeadline();
    Pump();
  }
  status_->finished.store(1);
  status_.Sync();
  news_ = true;
  Tell();
  ::unlink((folder_ + "/" + kControlSocket).c_str());
  return 0;
}

}  // namespace

int RunShim(const std::string& folder) {
  // The ready descriptor goes out of the way: 3 is the ranks' link.
  const int ready = ::fcntl(kReadyFd, F_DUPFD_CLOEXEC, 10);
  ::close(kReadyFd);
  ::setsid();  // no terminal's signals
  auto shim = std::make_unique<Shim>(folder);
  const std::string fault = shim->Start();
  const std::string answer = fault.empty() ? std::string(1, '\0') : fault;
  [[maybe_unused]] const ssize_t n = ::write(ready, answer.data(), answer.size());
  ::close(ready);
  if (shim->is_joined()) return kExitAlreadyJoined;
  if (fault.empty()) return shim->Run();
  if (shim->has_started()) shim->Run();  // some ranks: they go
  return 1;
}

}  // namespace switchyard
