// switchyard-agent: flags -> AgentConfig -> wiring -> run until SIGTERM or SIGINT.
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/log.h"
#include "base/thread.h"
#include "worker/agent/agent.h"
#include "worker/agent/config.h"

namespace switchyard {
namespace {

std::string HostName() {
  char name[256] = "";
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : "";
}

std::string OwnPath(const char* fallback) {
  char path[4096];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof(path));
  return n > 0 ? std::string(path, static_cast<size_t>(n)) : fallback;
}

// SIGTERM and SIGINT as a descriptor; call before any thread starts, so that all have them blocked.
UniqueFd BlockStopSignals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  return UniqueFd(::signalfd(-1, &signals, SFD_CLOEXEC));
}

// Returns when a signal came (true) or `other` became readable (false).
bool WaitForSignal(const UniqueFd& signals, int other) {
  while (true) {
    pollfd fds[2] = {{signals.get(), POLLIN, 0}, {other, POLLIN, 0}};
    if (::poll(fds, 2, -1) <= 0) continue;
    if (fds[0].revents != 0) {
      signalfd_siginfo info;
      return ::read(signals.get(), &info, sizeof(info)) > 0;
    }
    if (fds[1].revents != 0) return false;
  }
}

int Fail(const absl::Status& status) {
  std::cerr << "switchyard-agent: " << status.message() << "\n";
  return 1;
}

int Run(const AgentConfig& config) {
  const UniqueFd signals = BlockStopSignals();
  SetLogLevel(config.log_level);
  if (const absl::Status armed = ArmFailpointsFromEnvironment(); !armed.ok()) {
    Fail(armed);
    return 2;
  }

  std::vector<DeviceInfo> devices;
  if (config.cpu_ranks > 0) {
    devices = CpuDevices(config.cpu_ranks);
  } else {
    absl::StatusOr<std::vector<DeviceInfo>> gpus = FindGpus();
    if (!gpus.ok()) return Fail(gpus.status());
    devices = *std::move(gpus);
  }
  const auto metrics = std::make_shared<AgentMetrics>();
  absl::StatusOr<std::unique_ptr<MetricsServer>> server =
      MetricsServer::Start(config.metrics_listen, metrics);
  if (!server.ok()) return Fail(server.status());
  absl::StatusOr<std::unique_ptr<Agent>> agent =
      Agent::Start(config, devices, metrics, RealClock::Get());
  if (!agent.ok()) return Fail(agent.status());
  if (!config.port_file.empty()) {
    const std::string host = config.metrics_listen.substr(0, config.metrics_listen.rfind(':'));
    const Json ports{{"metrics_listen", absl::StrCat(host, ":", (*server)->port())}};
    const absl::Status written = ReplaceFile(config.port_file, DumpJson(ports) + "\n");
    if (!written.ok()) return Fail(written);
  }
  SY_LOG(INFO) << "agent ready node=" << config.node << " devices=" << devices.size() << " kind='"
               << devices[0].kind << "' coordinator=" << config.coordinator;

  if (!WaitForSignal(signals, (*agent)->refused().get())) return Fail((*agent)->refusal());
  SY_LOG(INFO) << "stopping: a second signal ends the agent at once";
  const UniqueFd done(::eventfd(0, EFD_CLOEXEC));
  bool complete = false;
  Thread shutdown("shutdown", [&](const StopToken&) {
    complete = (*agent)->Shutdown();
    ::eventfd_write(done.get(), 1);
  });
  if (WaitForSignal(signals, done.get())) {
    SY_LOG(WARNING) << "second signal: ending at once, trainers are killed";
    (*agent)->KillAttempts(absl::Seconds(5));
    ::_exit(1);
  }
  shutdown.StopAndJoin();
  SY_LOG(INFO) << "agent stopped all_reported=" << complete;
  return 0;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const absl::StatusOr<switchyard::CommandLine> line =
      switchyard::ParseCommandLine(arguments, switchyard::OwnPath(argv[0]), switchyard::HostName());
  if (!line.ok()) {
    std::cerr << "switchyard-agent: " << line.status().message() << "\n";
    return 2;
  }
  if (line->help) {
    std::cout << switchyard::HelpText();
    return 0;
  }
  if (line->print_failpoints) {
    for (const std::string& point : switchyard::FailpointNames()) std::cout << point << "\n";
    return 0;
  }
  return switchyard::Run(line->config);
}
