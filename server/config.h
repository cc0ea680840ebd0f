// Settings of switchyardd.
#ifndef SWITCHYARD_SERVER_CONFIG_H_
#define SWITCHYARD_SERVER_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard {

struct ServerConfig {
  // Where clients call: JobService, health, reflection. Port 0 chooses a free one, here and below.
  std::string listen = "127.0.0.1:7070";
  // Where agents call: AgentLink, health.
  std::string agent_listen = "127.0.0.1:7071";
  // Where Prometheus scrapes.
  std::string metrics_listen = "127.0.0.1:7072";
  // Database and logs. On a local disk.
  std::string state_dir = "/var/lib/switchyard";
  // Checkpoints and specs of all jobs, on a file system that agents share.
  std::string artifact_root = "/var/lib/switchyard/artifacts";
  // debug, info, warning or error.
  std::string log_level = "info";
  // Written when ready: JSON with the real addresses. Empty: none.
  std::string port_file;

  // An agent that is silent for this long has lost its node (plus 2 s and 1 %).
  absl::Duration lease_ttl = absl::Seconds(120);
  // How often agents are asked to report. Three missed: nothing new is placed there.
  absl::Duration heartbeat_interval = absl::Seconds(5);
  // First wait before a retry; doubles up to 10 min.
  absl::Duration retry_backoff = absl::Seconds(10);
  // Between two messages of a quiet watch.
  absl::Duration watch_heartbeat = absl::Seconds(15);
  // Read every byte of a checkpoint and compare checksums before it is published.
  bool verify_checksums = false;
  // Before a checkpoint is resumed from for the first time, a thread of its own reads every byte
  // and compares checksums; the job waits for it.
  bool verify_resume = true;
  // An attempt must be over for this long before what it left in its staging folder is removed.
  absl::Duration garbage_grace = absl::Minutes(10);

  // Events and steps of a job that ended so long ago are removed, but for its last event; "inf":
  // never. By the wall clock.
  absl::Duration keep_history = absl::Hours(24 * 30);
  // A repeated call is known by its request id for at least so long; "inf": for ever.
  absl::Duration keep_requests = absl::Hours(24 * 7);

  // All faults; empty: good.
  std::vector<std::string> Validate() const;
};

struct Arguments {
  ServerConfig config;
  bool help = false;
  bool version = false;
  bool print_states = false;      // print docs/states.md
  bool print_failpoints = false;  // print base/failpoint.h's places
};

// `--name value` or `--name=value`. Errors: InvalidArgument with all faults, one a line; an unknown
// flag with the closest known one.
absl::StatusOr<Arguments> ParseArguments(const std::vector<std::string>& arguments);

// The text of --help, with defaults.
std::string HelpText();

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_CONFIG_H_
