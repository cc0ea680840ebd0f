#include <unistd.h>

#include "absl/random/random.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "client/commands.h"

namespace switchyard {
namespace {

// The file's folder, absolute.
std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  std::string folder = slash == std::string::npos ? "." : path.substr(0, slash);
  if (slash == 0) folder = "/";
  char* real = ::realpath(folder.c_str(), nullptr);
  if (real == nullptr) return folder;
  folder = real;
  ::free(real);
  return folder;
}

int Dispatch(CommandContext& context) {
  const std::string& name = context.parsed.command->name;
  if (name == "submit") return RunSubmit(context);
  if (name == "validate") return RunValidate(context);
  if (name == "plan") return RunPlan(context);
  if (name == "list") return RunList(context);
  if (name == "get") return RunGet(context);
  if (name == "watch") return RunWatch(context);
  if (name == "logs") return RunLogs(context);
  if (name == "cancel") return RunCancel(context);
  if (name == "pause") return RunPause(context);
  if (name == "resume") return RunResume(context);
  if (name == "retry") return RunRetry(context);
  if (name == "nodes") return RunNodes(context);
  if (name == "checkpoints") return RunCheckpoints(context);
  context.terminal.out << RecipeKeysMarkdown();  // recipe-keys
  return 0;
}

}  // namespace

int RunCli(const std::vector<std::string>& args, Terminal& terminal) {
  absl::StatusOr<ParsedCommand> parsed = ParseCommandLine(args);
  if (!parsed.ok()) {
    terminal.err << "switchyard: " << parsed.status().message() << std::endl;
    return 2;
  }
  if (parsed->help) {
    terminal.out << (parsed->command == nullptr ? HelpText() : HelpText(*parsed->command));
    return 0;
  }
  const std::string server =
      parsed->Get("server", terminal.env("SWITCHYARD_SERVER").value_or("127.0.0.1:7070"));
  const std::string output = parsed->Get("output", "table");
  Connection connection(server, terminal);
  CommandContext context{*parsed, terminal, connection,
                         output == "json"   ? Format::kJson
                         : output == "yaml" ? Format::kYaml
                                            : Format::kTable,
                         absl::StrCat("projects/", parsed->Get("project", "default"))};
  const int code = Dispatch(context);
  terminal.out.flush();
  return code;
}

std::string CommandContext::JobName() const {
  const std::string& job = parsed.arguments[0];
  return absl::StartsWith(job, "projects/") ? job : absl::StrCat(parent, "/jobs/", job);
}

int CommandContext::Fail(const absl::Status& status, absl::string_view doing) const {
  if (terminal.interrupt.triggered()) {
    terminal.err << "switchyard: interrupted" << std::endl;
    return 130;
  }
  terminal.err << DescribeError(status, doing, connection.server()) << std::endl;
  return ExitCode(status);
}

int CommandContext::FailUsage(absl::string_view message) const {
  terminal.err << "switchyard: " << message << std::endl;
  return 2;
}

absl::StatusOr<LoadedRecipe> LoadRecipe(const CommandContext& context) {
  const std::string& path = context.parsed.arguments[0];
  LoadedRecipe loaded;
  ASSIGN_OR_RETURN(loaded.text, ReadFile(path));
  RecipeOptions options;
  options.name = path;
  options.folder = FolderOf(path);
  options.overrides = context.parsed.All("set");
  options.env = context.terminal.env;
  ASSIGN_OR_RETURN(loaded.recipe, ReadRecipe(loaded.text, options));
  return loaded;
}

int ReportRefusals(const CommandContext& context, const Recipe& recipe) {
  const int refused = recipe.num_refused();
  if (refused == 0) return 0;
  const std::string& path = context.parsed.arguments[0];
  for (const ReportLine& line : recipe.report) {
    if (line.verdict != Verdict::kRefused) continue;
    context.terminal.err << path << (line.line > 0 ? absl::StrCat(":", line.line) : "") << ": "
                         << line.key << ": " << line.note << "\n";
  }
  context.terminal.err << "switchyard: " << path << ": " << refused
                       << (refused == 1 ? " key is" : " keys are") << " refused" << std::endl;
  return 2;
}

std::string MakeRequestId() {
  absl::BitGen random;
  const uint64_t high = absl::Uniform<uint64_t>(random);
  const uint64_t low = absl::Uniform<uint64_t>(random);
  return absl::StrFormat("%08x-%04x-4%03x-%04x-%012x", high >> 32, (high >> 16) & 0xffff,
                         high & 0xfff, 0x8000 | ((low >> 48) & 0x3fff), low & 0xffffffffffff);
}

}  // namespace switchyard
