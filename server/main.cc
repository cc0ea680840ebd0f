// switchyardd: flags -> ServerConfig -> Coordinator; waits for a signal.
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/log.h"
#include "server/api/coordinator.h"
#include "server/api/listener.h"
#include "server/config.h"
#include "server/job_state.h"
#include "server/maintenance.h"

namespace switchyard {
namespace {

LogLevel ParseLevel(const std::string& name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  return LogLevel::kInfo;
}

int Run(const ServerConfig& config) {
  SetLogLevel(ParseLevel(config.log_level));
  // Before any thread starts, so that all inherit it and sigwait is the only receiver.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  RaiseDescriptorLimit();
  if (const absl::Status armed = ArmFailpointsFromEnvironment(); !armed.ok()) {
    fprintf(stderr, "switchyardd: %s\n", std::string(armed.message()).c_str());
    return 2;
  }

  absl::StatusOr<std::unique_ptr<Coordinator>> coordinator =
      Coordinator::Start(config, RealClock::Get());
  if (!coordinator.ok()) {
    fprintf(stderr, "switchyardd: %s\n", std::string(coordinator.status().message()).c_str());
    return 1;
  }
  if (!config.port_file.empty()) {
    const Json ports = {{"listen", (*coordinator)->listen()},
                        {"agent_listen", (*coordinator)->agent_listen()},
                        {"metrics_listen", (*coordinator)->metrics_listen()}};
    const absl::Status written = ReplaceFile(config.port_file, DumpJson(ports) + "\n");
    if (!written.ok()) {
      fprintf(stderr, "switchyardd: %s\n", std::string(written.message()).c_str());
      return 1;
    }
  }
  int signal = 0;
  sigwait(&signals, &signal);
  SY_LOG(INFO) << "stopping signal=" << signal;
  // A second signal ends at once; that is safe too.
  struct sigaction action = {};
  action.sa_handler = [](int) { ::_exit(1); };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  (*coordinator)->Stop();
  return 0;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  if (argc > 1 && switchyard::IsMaintenanceCommand(argv[1])) {
    return switchyard::RunMaintenance(std::vector<std::string>(argv + 1, argv + argc));
  }
  const absl::StatusOr<switchyard::Arguments> arguments =
      switchyard::ParseArguments(std::vector<std::string>(argv + 1, argv + argc));
  if (!arguments.ok()) {
    fprintf(stderr, "switchyardd: %s\nTry switchyardd --help.\n",
            std::string(arguments.status().message()).c_str());
    return 2;
  }
  if (arguments->help) {
    printf("%s%s", switchyard::HelpText().c_str(), switchyard::MaintenanceHelp().c_str());
    return 0;
  }
  if (arguments->version) {
    printf("switchyardd %s\n", SY_VERSION);
    return 0;
  }
  if (arguments->print_states) {
    printf("%s", switchyard::StatesMarkdown().c_str());
    return 0;
  }
  if (arguments->print_failpoints) {
    for (const std::string& line : switchyard::FailpointNames()) printf("%s\n", line.c_str());
    return 0;
  }
  return switchyard::Run(arguments->config);
}
