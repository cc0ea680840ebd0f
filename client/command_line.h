// Commands, their flags, and the words that explain them. One table serves parsing, --help and
// "did you mean".
#ifndef SWITCHYARD_CLIENT_COMMAND_LINE_H_
#define SWITCHYARD_CLIENT_COMMAND_LINE_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

struct Flag {
  std::string name;   // without dashes
  std::string value;  // what stands for the value in help; empty: a switch
  std::string help;
  char letter = 0;  // -f
};

struct Command {
  std::string name;
  std::string arguments;  // "RECIPE", "JOB", "", "ACTION [NODE]"
  std::string summary;    // one line
  std::string details;    // paragraphs for its own --help, with examples
  std::vector<Flag> flags;
  bool hidden = false;
};

// In the order of --help.
const std::vector<Command>& Commands();
// Hold for every command.
const std::vector<Flag>& GlobalFlags();

struct ParsedCommand {
  const Command* command = nullptr;  // nullptr: only help or version was asked for
  bool help = false;
  std::vector<std::string> arguments;  // as many as command->arguments has words, less those in []
  std::map<std::string, std::vector<std::string>> flags;  // each value, in order; a switch: ""

  bool Has(const std::string& flag) const { return flags.count(flag) > 0; }
  // The last value, or `fallback`.
  std::string Get(const std::string& flag, const std::string& fallback = "") const;
  std::vector<std::string> All(const std::string& flag) const;
};

// `args` without the program's name. Global flags may stand anywhere. Errors: InvalidArgument, with
// a suggestion where a known word is near.
absl::StatusOr<ParsedCommand> ParseCommandLine(const std::vector<std::string>& args);

std::string HelpText();
std::string HelpText(const Command& command);

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_COMMAND_LINE_H_
