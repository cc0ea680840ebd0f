#include "worker/agent/config.h"

#include <algorithm>
#include <functional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/edit_distance.h"

namespace switchyard {
namespace {

struct Flag {
  std::string name;
  std::string value_name;
  std::string help;
  std::function<bool(const std::string& value, AgentConfig& config)> set;  // false: a bad value
};

std::function<bool(const std::string&, AgentConfig&)> Text(std::string AgentConfig::*member) {
  return [member](const std::string& value, AgentConfig& config) {
    config.*member = value;
    return true;
  };
}

bool SetLevel(const std::string& value, AgentConfig& config) {
  constexpr const char* kNames[] = {"debug", "info", "warning", "error"};
  for (int i = 0; i < 4; ++i) {
    if (value != kNames[i]) continue;
    config.log_level = static_cast<LogLevel>(i);
    return true;
  }
  return false;
}

std::function<bool(const std::string&, AgentConfig&)> Span(absl::Duration AgentConfig::*member) {
  return [member](const std::string& value, AgentConfig& config) {
    return absl::ParseDuration(value, &(config.*member)) && config.*member > absl::ZeroDuration();
  };
}

bool SetCpuRanks(const std::string& value, AgentConfig& config) {
  return absl::SimpleAtoi(value, &config.cpu_ranks) && config.cpu_ranks > 0 &&
         config.cpu_ranks <= 1024;
}

const std::vector<Flag>& Flags() {
  static const auto* const flags = new std::vector<Flag>{
      {"coordinator", "HOST:PORT", "the coordinator's --agent-listen (default 127.0.0.1:7071)",
       Text(&AgentConfig::coordinator)},
      {"node", "NAME", "this node's name, unique in the cluster (default: the host name)",
       Text(&AgentConfig::node)},
      {"state-dir", "DIR", "folder for token files and attempts (required)",
       Text(&AgentConfig::state_dir)},
      {"address", "IP", "where other nodes reach this one (default 127.0.0.1)",
       Text(&AgentConfig::address)},
      {"cpu-ranks", "N", "offer N CPU ranks, 1 to 1024; without it, GPUs are found by NVML",
       SetCpuRanks},
      {"metrics-listen", "HOST:PORT",
       "Prometheus metrics; port 0 chooses a free one (default 127.0.0.1:7073)",
       Text(&AgentConfig::metrics_listen)},
      {"bin-dir", "DIR",
       "where switchyard-prep and switchyard-trainer are (default: beside this program)",
       Text(&AgentConfig::bin_dir)},
      {"hang-floor", "DURATION",
       "a training gang hangs after 5 times its usual step time, and at least this (default 5m)",
       Span(&AgentConfig::hang_floor)},
      {"phase-limit", "DURATION",
       "how long loading, validating, saving and the first step may take (default 30m)",
       Span(&AgentConfig::phase_limit)},
      {"log-level", "LEVEL", "debug, info, warning or error (default info)", SetLevel},
      {"port-file", "FILE", "write {\"metrics_listen\": \"HOST:PORT\"} here when ready",
       Text(&AgentConfig::port_file)},
  };
  return *flags;
}

absl::Status UnknownFlag(absl::string_view name) {
  std::vector<std::string> names;
  for (const Flag& flag : Flags()) names.push_back(flag.name);
  const std::string nearest = Nearest(name, names);
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown flag --", name,
      nearest.empty() ? "; see --help" : absl::StrCat("; did you mean --", nearest, "?")));
}

bool IsHostPort(absl::string_view text) {
  const size_t colon = text.rfind(':');
  int port = 0;
  return colon != absl::string_view::npos && colon > 0 &&
         absl::SimpleAtoi(text.substr(colon + 1), &port) && port >= 0 && port <= 65535;
}

}  // namespace

std::vector<std::string> AgentConfig::Validate() const {
  std::vector<std::string> faults;
  if (!IsHostPort(coordinator)) {
    faults.push_back(absl::StrCat("--coordinator: '", coordinator, "' is not HOST:PORT"));
  }
  if (!IsHostPort(metrics_listen)) {
    faults.push_back(absl::StrCat("--metrics-listen: '", metrics_listen, "' is not HOST:PORT"));
  }
  if (node.empty()) faults.push_back("--node is empty and this host has no name");
  if (state_dir.empty()) faults.push_back("--state-dir is required");
  if (bin_dir.empty()) faults.push_back("--bin-dir is empty");
  if (address.empty()) faults.push_back("--address is empty");
  return faults;
}

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments,
                                             const std::string& program,
                                             const std::string& host_name) {
  CommandLine line;
  line.config.node = host_name;
  const size_t slash = program.rfind('/');
  line.config.bin_dir = slash == std::string::npos ? "." : program.substr(0, slash);
  line.config.shim_program = line.config.bin_dir + "/switchyard-shim";
  for (size_t i = 0; i < arguments.size(); ++i) {
    absl::string_view argument = arguments[i];
    if (argument == "--help" || argument == "-h") {
      line.help = true;
      return line;
    }
    if (argument == "--print-failpoints") {
      line.print_failpoints = true;
      return line;
    }
    if (!absl::ConsumePrefix(&argument, "--")) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", arguments[i], "' is not a flag; this program takes only flags"));
    }
    const size_t equals = argument.find('=');
    const absl::string_view name = argument.substr(0, equals);
    const auto flag = std::find_if(Flags().begin(), Flags().end(),
                                   [name](const Flag& f) { return f.name == name; });
    if (flag == Flags().end()) return UnknownFlag(name);
    std::string value;
    if (equals != absl::string_view::npos) {
      value = std::string(argument.substr(equals + 1));
    } else if (i + 1 < arguments.size()) {
      value = arguments[++i];
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("--", name, " needs a value: ", flag->value_name));
    }
    if (!flag->set(value, line.config)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", name, ": '", value, "' is not valid: ", flag->help));
    }
  }
  const std::vector<std::string> faults = line.config.Validate();
  if (!faults.empty()) return absl::InvalidArgumentError(absl::StrJoin(faults, "\n"));
  return line;
}

std::string HelpText() {
  std::string text =
      "switchyard-agent: offers this machine's devices to a Switchyard coordinator and runs the\n"
      "trainers that it places here. One per node.\n\n"
      "usage: switchyard-agent --state-dir DIR [--cpu-ranks N] [flags]\n\n";
  for (const Flag& flag : Flags()) {
    absl::StrAppendFormat(&text, "  %-28s %s\n",
                          absl::StrCat("--", flag.name, " ", flag.value_name), flag.help);
  }
  absl::StrAppend(&text,
                  "  --print-failpoints           print the places of SWITCHYARD_FAILPOINTS\n"
                  "\nSIGTERM: stops the trainers, reports, exits. A second one: exits at once.\n");
  return text;
}

}  // namespace switchyard
