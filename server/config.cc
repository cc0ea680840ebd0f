#include "server/config.h"

#include <algorithm>
#include <functional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/edit_distance.h"

namespace switchyard {
namespace {

struct Flag {
  const char* name;
  const char* value;  // as shown in --help
  const char* help;
  std::string ServerConfig::*text = nullptr;
  absl::Duration ServerConfig::*duration = nullptr;
  bool ServerConfig::*truth = nullptr;
};

const std::vector<Flag>& Flags() {
  static const auto* flags = new std::vector<Flag>{
      {"listen", "HOST:PORT", "clients: JobService, health, reflection", &ServerConfig::listen},
      {"agent-listen", "HOST:PORT", "agents: AgentLink, health", &ServerConfig::agent_listen},
      {"metrics-listen", "HOST:PORT", "Prometheus: /metrics", &ServerConfig::metrics_listen},
      {"state-dir", "DIR", "database and logs, on a local disk", &ServerConfig::state_dir},
      {"artifact-root", "DIR", "checkpoints, on a file system that agents share",
       &ServerConfig::artifact_root},
      {"log-level", "LEVEL", "debug, info, warning or error", &ServerConfig::log_level},
      {"port-file", "FILE", "written when ready, with the real addresses",
       &ServerConfig::port_file},
      {"lease-ttl", "DURATION", "silence after which a node is lost", nullptr,
       &ServerConfig::lease_ttl},
      {"heartbeat-interval", "DURATION", "how often agents report", nullptr,
       &ServerConfig::heartbeat_interval},
      {"retry-backoff", "DURATION", "first wait before a retry; doubles up to 10m", nullptr,
       &ServerConfig::retry_backoff},
      {"watch-heartbeat", "DURATION", "between two messages of a quiet watch", nullptr,
       &ServerConfig::watch_heartbeat},
      {"keep-history", "DURATION", "events and steps of jobs that ended longer ago go; inf: never",
       nullptr, &ServerConfig::keep_history},
      {"keep-requests", "DURATION", "request ids older than this are forgotten; inf: never",
       nullptr, &ServerConfig::keep_requests},
      {"verify-checksums", "BOOL", "read checkpoints whole before they are published", nullptr,
       nullptr, &ServerConfig::verify_checksums},
      {"verify-resume", "BOOL", "read checkpoints whole before they are resumed from", nullptr,
       nullptr, &ServerConfig::verify_resume},
      {"garbage-grace", "DURATION", "before the staging folder of an attempt that is over goes",
       nullptr, &ServerConfig::garbage_grace},
  };
  return *flags;
}

std::string UnknownFlag(const std::string& name) {
  std::vector<std::string> names;
  for (const Flag& flag : Flags()) names.push_back(flag.name);
  const std::string nearest = Nearest(name, names);
  return absl::StrCat("unknown flag --", name,
                      nearest.empty() ? "" : absl::StrCat("; did you mean --", nearest, "?"));
}

// The flags that print something instead of running; null: another flag.
bool* PrintFlag(const std::string& name, Arguments& out) {
  if (name == "help") return &out.help;
  if (name == "version") return &out.version;
  if (name == "print-states") return &out.print_states;
  if (name == "print-failpoints") return &out.print_failpoints;
  return nullptr;
}

std::string SetFlag(const Flag& flag, const std::string& value, ServerConfig& config) {
  if (flag.text != nullptr) {
    config.*flag.text = value;
  } else if (flag.duration != nullptr) {
    if (!absl::ParseDuration(value, &(config.*flag.duration))) {
      return absl::StrCat("--", flag.name, ": '", value, "' is not a duration such as 30s or 2m");
    }
  } else if (!absl::SimpleAtob(value, &(config.*flag.truth))) {
    return absl::StrCat("--", flag.name, ": '", value, "' is not true or false");
  }
  return "";
}

std::string Shown(const Flag& flag, const ServerConfig& config) {
  if (flag.text != nullptr) return config.*flag.text;
  if (flag.duration != nullptr) return absl::FormatDuration(config.*flag.duration);
  return config.*flag.truth ? "true" : "false";
}

}  // namespace

std::vector<std::string> ServerConfig::Validate() const {
  std::vector<std::string> faults;
  for (const auto& [name, address] : {std::pair<const char*, const std::string&>{"listen", listen},
                                      {"agent-listen", agent_listen},
                                      {"metrics-listen", metrics_listen}}) {
    const size_t colon = address.rfind(':');
    int port = -1;
    if (colon == std::string::npos || colon == 0 ||
        !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
      faults.push_back(absl::StrCat("--", name, ": '", address, "' is not host:port"));
    }
  }
  if (state_dir.empty()) faults.push_back("--state-dir is empty");
  if (!absl::StartsWith(artifact_root, "/")) {
    faults.push_back(absl::StrCat("--artifact-root: '", artifact_root,
                                  "' must be absolute: agents use it as it is"));
  }
  if (log_level != "debug" && log_level != "info" && log_level != "warning" &&
      log_level != "error") {
    faults.push_back(
        absl::StrCat("--log-level: '", log_level, "' is not debug, info, warning or error"));
  }
  if (heartbeat_interval <= absl::ZeroDuration() || heartbeat_interval * 3 > lease_ttl) {
    faults.push_back(
        absl::StrCat("--heartbeat-interval: ", absl::FormatDuration(heartbeat_interval),
                     " must be more than 0 and at most a third of --lease-ttl ",
                     absl::FormatDuration(lease_ttl)));
  }
  if (keep_history < absl::Hours(1)) faults.push_back("--keep-history is less than an hour");
  if (keep_requests < absl::Hours(1)) faults.push_back("--keep-requests is less than an hour");
  if (retry_backoff < absl::ZeroDuration()) faults.push_back("--retry-backoff is negative");
  if (garbage_grace < absl::ZeroDuration()) faults.push_back("--garbage-grace is negative");
  if (watch_heartbeat <= absl::ZeroDuration())
    faults.push_back("--watch-heartbeat is not positive");
  return faults;
}

absl::StatusOr<Arguments> ParseArguments(const std::vector<std::string>& arguments) {
  Arguments out;
  std::vector<std::string> faults;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (!absl::StartsWith(argument, "--")) {
      faults.push_back(absl::StrCat("unexpected argument '", argument, "'"));
      continue;
    }
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    if (bool* const print = PrintFlag(name, out); print != nullptr) {
      *print = true;
      continue;
    }
    const auto flag =
        std::find_if(Flags().begin(), Flags().end(), [&](const Flag& f) { return name == f.name; });
    if (flag == Flags().end()) {
      faults.push_back(UnknownFlag(name));
      // Its value, if it has one, is no fault of its own.
      if (equals == std::string::npos && i + 1 < arguments.size() &&
          !absl::StartsWith(arguments[i + 1], "--")) {
        ++i;
      }
      continue;
    }
    std::string value;
    if (equals != std::string::npos) {
      value = argument.substr(equals + 1);
    } else if (i + 1 < arguments.size()) {
      value = arguments[++i];
    } else {
      faults.push_back(absl::StrCat("--", name, " needs a value: ", flag->value));
      continue;
    }
    std::string fault = SetFlag(*flag, value, out.config);
    if (!fault.empty()) faults.push_back(std::move(fault));
  }
  if (faults.empty() && !out.help && !out.version && !out.print_states && !out.print_failpoints) {
    faults = out.config.Validate();
  }
  if (!faults.empty()) return absl::InvalidArgumentError(absl::StrJoin(faults, "\n"));
  return out;
}

std::string HelpText() {
  std::string out =
      "switchyardd: the coordinator of Switchyard. Takes fine-tuning jobs, keeps them, places them "
      "on "
      "agents.\n\nusage: switchyardd [flags]\n\n";
  const ServerConfig defaults;
  for (const Flag& flag : Flags()) {
    const std::string shown = Shown(flag, defaults);
    absl::StrAppend(
        &out, absl::StrFormat("  --%-32s %s%s\n", absl::StrCat(flag.name, " ", flag.value),
                              flag.help, shown.empty() ? "" : absl::StrCat(" (", shown, ")")));
  }
  absl::StrAppend(
      &out,
      "  --print-states                     print the states as docs/states.md\n"
      "  --print-failpoints                 print the places of SWITCHYARD_FAILPOINTS\n",
      "  --version\n  --help\n");
  return out;
}

}  // namespace switchyard
