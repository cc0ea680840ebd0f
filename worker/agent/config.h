// Settings of one agent process, and its command line (docs/contracts.md).
#ifndef SWITCHYARD_WORKER_AGENT_CONFIG_H_
#define SWITCHYARD_WORKER_AGENT_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/log.h"

namespace switchyard {

inline constexpr char kAgentVersion[] = "0.1.0";

struct AgentConfig {
  std::string coordinator = "127.0.0.1:7071";  // host:port of the coordinator's --agent-listen
  std::string node;                            // unique among the agents; default: host name
  std::string state_dir;                       // token-file cache and attempt folders
  std::string address = "127.0.0.1";           // where other nodes reach this one
  int cpu_ranks = 0;                           // > 0: offer CPU ranks; 0: GPUs found by NVML
  std::string metrics_listen = "127.0.0.1:7073";
  std::string bin_dir;    // of switchyard-prep and switchyard-trainer; default: beside the agent
  std::string port_file;  // written when ready; empty: none
  // The hang watchdog (progress_watch.h).
  absl::Duration hang_floor = absl::Minutes(5);
  absl::Duration phase_limit = absl::Minutes(30);
  LogLevel log_level = LogLevel::kInfo;

  // Not on the command line.
  std::string shim_program;                        // switchyard-shim; beside the agent
  std::string nvml_library = "libnvidia-ml.so.1";  // for tests
  // How long an attempt that has ended waits for its devices to be free before they are withheld.
  absl::Duration device_free_timeout = absl::Seconds(30);
  absl::Duration term_grace = absl::Seconds(5);         // from SIGTERM to SIGKILL
  absl::Duration gang_grace = absl::Seconds(3);         // the same, for the peers of a failed rank
  absl::Duration shutdown_grace = absl::Seconds(15);    // for attempts when the agent is stopped
  absl::Duration error_exit_grace = absl::Seconds(10);  // from a rank's error frame to its exit
  absl::Duration done_grace = absl::Seconds(120);  // from the first rank's exit 0 to the last's

  // All faults, one message each; empty: fine.
  std::vector<std::string> Validate() const;
};

struct CommandLine {
  bool help = false;
  bool print_failpoints = false;  // print base/failpoint.h's places
  AgentConfig config;
};

// `arguments` without the program's name: --name value or --name=value. `program` is the agent's
// own path, `host_name` the default node. Errors: InvalidArgument, for a message to the user: an
// unknown flag (with the nearest known one), a missing or bad value, a fault of Validate.
absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments,
                                             const std::string& program,
                                             const std::string& host_name);

// The text of --help, with defaults.
std::string HelpText();

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_CONFIG_H_
