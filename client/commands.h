// The commands of `switchyard`. Each returns the exit code.
#ifndef SWITCHYARD_CLIENT_COMMANDS_H_
#define SWITCHYARD_CLIENT_COMMANDS_H_

#include <string>
#include <vector>

#include "absl/types/optional.h"
#include "client/command_line.h"
#include "client/connection.h"
#include "client/output.h"
#include "client/recipe.h"
#include "client/terminal.h"

namespace switchyard {

// Runs one command line (without the program's name).
int RunCli(const std::vector<std::string>& args, Terminal& terminal);

// What every command gets. The connection is made, lazily as gRPC does, also where none is used.
struct CommandContext {
  const ParsedCommand& parsed;
  Terminal& terminal;
  Connection& connection;
  Format format;
  std::string parent;  // projects/{project}

  // The argument JOB as a resource name: the short id, or the name itself.
  std::string JobName() const;
  // Prints DescribeError and returns the exit code.
  int Fail(const absl::Status& status, absl::string_view doing) const;
  int FailUsage(absl::string_view message) const;
};

int RunSubmit(CommandContext& context);
int RunValidate(CommandContext& context);
int RunPlan(CommandContext& context);
int RunList(CommandContext& context);
int RunGet(CommandContext& context);
int RunWatch(CommandContext& context);
int RunLogs(CommandContext& context);
int RunCancel(CommandContext& context);
int RunPause(CommandContext& context);
int RunResume(CommandContext& context);
int RunRetry(CommandContext& context);
int RunCheckpoints(CommandContext& context);
int RunNodes(CommandContext& context);

struct LoadedRecipe {
  Recipe recipe;
  std::string text;
};
// Reads the recipe file that the command names, with its --set. Errors: NotFound for the file,
// InvalidArgument.
absl::StatusOr<LoadedRecipe> LoadRecipe(const CommandContext& context);
// The refused lines on stderr, with the number of them; 2 when there are any, else 0.
int ReportRefusals(const CommandContext& context, const Recipe& recipe);

// --grace-period, when it is given. Errors: InvalidArgument.
absl::StatusOr<absl::optional<int64_t>> GraceSeconds(const CommandContext& context);

// A random UUID of version 4.
std::string MakeRequestId();

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_COMMANDS_H_
