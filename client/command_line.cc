#include "client/command_line.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/edit_distance.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

const Flag kSet = {
    "set", "KEY=VALUE",
    "replace or add one key of the recipe, such as optimizer.lr=1e-5; may be repeated"};

std::string Spelled(const Flag& flag) {
  const std::string value = flag.value.empty() ? "" : absl::StrCat(" ", flag.value);
  if (flag.letter == 0) return absl::StrCat("    --", flag.name, value);
  return absl::StrCat("-", std::string(1, flag.letter), ", --", flag.name, value);
}

std::string FlagTable(const std::vector<Flag>& flags) {
  std::string out;
  for (const Flag& flag : flags) {
    absl::StrAppendFormat(&out, "  %-26s %s\n", Spelled(flag), flag.help);
  }
  return out;
}

const Flag* FindFlag(const std::vector<Flag>& flags, absl::string_view name) {
  for (const Flag& flag : flags) {
    if (name == flag.name || (name.size() == 1 && name[0] == flag.letter)) return &flag;
  }
  return nullptr;
}

absl::Status Unknown(absl::string_view kind, absl::string_view word,
                     const std::vector<std::string>& known, absl::string_view prefix,
                     absl::string_view help) {
  const std::string near = Nearest(word, known);
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown ", kind, " ", prefix, word,
      near.empty() ? "" : absl::StrCat(": did you mean ", prefix, near, "?"), "\n", help));
}

}  // namespace

const std::vector<Flag>& GlobalFlags() {
  static const auto& flags = *new std::vector<Flag>{
      {"server", "HOST:PORT", "the coordinator [SWITCHYARD_SERVER, else 127.0.0.1:7070]"},
      {"project", "NAME", "the project of short job names [default]"},
      {"output", "FORMAT", "table, json or yaml [table]", 'o'},
      {"help", "", "explain the command", 'h'},
  };
  return flags;
}

const std::vector<Command>& Commands() {
  static const auto& commands = *new std::vector<Command>{
      {"submit",
       "RECIPE",
       "send a job to the coordinator",
       "Reads the recipe, refuses what would not do what it says, and sends the job. The answer "
       "comes when\n"
       "the job is stored durably; it then waits for its ranks to be free.\n\n"
       "A submit is safe to repeat with the same --request-id: it never makes a second job. When "
       "the outcome\n"
       "is unknown (the connection broke), the id to repeat with is printed.\n\n"
       "  switchyard submit recipe.yaml --watch\n"
       "  switchyard submit recipe.yaml --name try-3 --set optimizer.lr=3e-5 --set seed=7\n",
       {kSet,
        {"name", "ID", "the job's id: [a-z0-9-], at most 63; without it the server chooses"},
        {"watch", "", "follow the job as `switchyard watch` does"},
        {"request-id", "UUID", "makes a repeated submit safe [a new one]"},
        {"validate-only", "", "let the server check everything, but store nothing"}}},
      {"validate",
       "RECIPE",
       "check a recipe, here, without a server",
       "Prints a verdict on every key (used, ignored and why, refused and why) and the defaults "
       "that hold,\n"
       "and checks that the model folder and the data files are there. Exit code 2 when something "
       "is refused.\n"
       "docs/recipes.md lists every key.\n\n"
       "  switchyard validate recipe.yaml\n"
       "  switchyard validate recipe.yaml -o json   # with the job spec that would be sent\n",
       {kSet, {"no-files", "", "do not look for model and data on this machine"}}},
      {"plan",
       "RECIPE",
       "what a job would need, and whether it could start now",
       "Asks the coordinator: bytes of weights, gradients, optimizer state and activations on the "
       "fullest rank,\n"
       "ranks wanted and free, jobs ahead of it. Changes nothing.\n\n"
       "  switchyard plan recipe.yaml --set resources.num_ranks=8\n",
       {kSet}},
      {"list",
       "",
       "list jobs, newest first",
       "  switchyard list --state running --state queued\n"
       "  switchyard list --label team=search --limit 0\n",
       {{"state", "STATE", "only jobs in this state; may be repeated"},
        {"label", "KEY=VALUE", "only jobs with this label; may be repeated"},
        {"limit", "N", "at most so many; 0: all [50]"}}},
      {"get",
       "JOB",
       "show one job: state, why it waits or failed, progress, attempts",
       "JOB is the short id or projects/PROJECT/jobs/ID.\n\n"
       "  switchyard get try-3\n"
       "  switchyard get try-3 -o yaml\n",
       {}},
      {"watch",
       "JOB",
       "follow a job until it ends",
       "Shows events and, on a terminal, one line of progress: step, loss, learning rate, tokens "
       "per second,\n"
       "memory of the fullest rank, time left. Not on a terminal: one line per step. Goes on by "
       "itself when the\n"
       "coordinator restarts. Ctrl-C detaches (exit code 130); the job goes on. With -o json: one "
       "object per line.\n\n"
       "Exit code: 0 succeeded, 10 failed (with the reason, the rank and its last lines), 11 "
       "cancelled.\n",
       {{"from-start", "", "replay all steps, not only those from now on"}}},
      {"logs",
       "JOB",
       "print what a job's processes wrote",
       "  switchyard logs -f try-3\n"
       "  switchyard logs try-3 --rank 1 --tail 50\n"
       "  switchyard logs try-3 --rank prep         # what data preparation said\n",
       {{"follow", "", "go on until the job ends", 'f'},
        {"rank", "N", "only this rank, or prep; may be repeated"},
        {"tail", "N", "start so many lines before the end"},
        {"attempt", "N", "of this attempt [the current one]"}}},
      {"cancel",
       "JOB",
       "stop a job",
       "A waiting job ends at once; a running one finishes its step and stops. To cancel twice is "
       "no error.\n",
       {{"grace-period", "SECONDS", "after which its processes are killed [30]"}}},
      {"pause",
       "JOB",
       "stop a job with a checkpoint, and keep it out of the queue",
       "A running one finishes its step and writes a checkpoint. `switchyard resume` lets it go on "
       "from there.\n"
       "Needs checkpoints with the optimizer's state (checkpoint.save_optimizer).\n",
       {{"grace-period", "SECONDS", "for the step and the checkpoint [60]"}}},
      {"resume", "JOB", "put a paused job back into the queue", "", {}},
      {"retry",
       "JOB",
       "submit a failed or cancelled job again, from its newest checkpoint",
       "A new job with the same recipe and new budgets; the old one stays as it ended. It begins "
       "anew where the\n"
       "old one's checkpoints lack the optimizer's state (checkpoint.save_optimizer).\n",
       {{"name", "NAME", "of the new job [chosen by the coordinator]"}}},
      {"nodes",
       "ACTION [NODE]",
       "list, cordon, drain, resume, confirm-dead: look after nodes",
       "  switchyard nodes list\n"
       "  switchyard nodes cordon n3 --message 'fan noise'   # nothing new is placed there\n"
       "  switchyard nodes drain n3        # and its gangs stop with a checkpoint and run "
       "elsewhere\n"
       "  switchyard nodes resume n3       # ends either, and a quarantine\n"
       "  switchyard nodes confirm-dead n3 # its power is off: its jobs need not wait for the "
       "lease\n"
       "  switchyard nodes audit           # who did what\n",
       {{"message", "TEXT", "why, for others"}}},
      {"checkpoints",
       "ACTION [CHECKPOINT] [FOLDER]",
       "list, verify, download, export, diff, pin, unpin, delete",
       "Each checkpoint is a Hugging Face folder that Transformers, vLLM and SGLang load as it is. "
       "CHECKPOINT is\n"
       "JOB@STEP, JOB for its newest, or a folder of this machine (with a slash: ./step-6).\n\n"
       "  switchyard checkpoints list try-3              # also: switchyard checkpoints try-3\n"
       "  switchyard checkpoints verify try-3            # reads every byte, through the "
       "coordinator\n"
       "  switchyard checkpoints verify /models/step-6   # or here, without one\n"
       "  switchyard checkpoints download try-3@6 /models/step-6   # again: goes on where it was "
       "cut off\n"
       "  switchyard checkpoints export /models/step-6 /models/try-3 --dtype bf16\n"
       "  switchyard checkpoints diff try-3@6 try-3@12\n"
       "  switchyard checkpoints pin try-3@6             # kept whatever the recipe's retention "
       "says\n"
       "  switchyard checkpoints delete try-3@6\n\n"
       "Exit codes beside the usual: 7 the checkpoint is damaged, 8 the two differ.\n",
       {{"dtype", "DTYPE", "of the exported weights: bf16, fp16 or fp32"},
        {"parallel", "N", "files downloaded at the same time [4]"},
        {"chunk-bytes", "N", "of one message of a download, at most 1048576 [262144]"},
        {"all", "", "diff: also tensors that are the same"},
        {"final", "", "delete: also the job's result"}}},
      {"recipe-keys",
       "",
       "print the table of recipe keys",
       "",
       {{"markdown", "", "for docs/recipes.md"}},
       true},
  };
  return commands;
}

std::string ParsedCommand::Get(const std::string& flag, const std::string& fallback) const {
  const auto it = flags.find(flag);
  return it == flags.end() ? fallback : it->second.back();
}

std::vector<std::string> ParsedCommand::All(const std::string& flag) const {
  const auto it = flags.find(flag);
  return it == flags.end() ? std::vector<std::string>() : it->second;
}

absl::StatusOr<ParsedCommand> ParseCommandLine(const std::vector<std::string>& args) {
  ParsedCommand parsed;
  // The first word is the command; its own flags stand behind it.
  std::vector<std::string> words;
  const std::string see = "see `switchyard --help`";
  bool only_words = false;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (only_words || arg.size() < 2 || arg[0] != '-') {
      words.push_back(arg);
      if (parsed.command == nullptr) {
        std::vector<std::string> names;
        for (const Command& command : Commands()) {
          if (command.name == arg) parsed.command = &command;
          if (!command.hidden) names.push_back(command.name);
        }
        if (parsed.command == nullptr) return Unknown("command", arg, names, "", see);
      }
      continue;
    }
    if (arg == "--") {
      only_words = true;
      continue;
    }
    const bool is_long = absl::StartsWith(arg, "--");
    const std::string body = arg.substr(is_long ? 2 : 1);
    const size_t equals = is_long ? body.find('=') : std::string::npos;
    const std::string name = body.substr(0, equals);
    const Flag* flag = FindFlag(GlobalFlags(), name);
    if (flag == nullptr && parsed.command != nullptr) flag = FindFlag(parsed.command->flags, name);
    if (flag == nullptr) {
      std::vector<std::string> known;
      for (const Flag& global : GlobalFlags()) known.push_back(global.name);
      if (parsed.command != nullptr) {
        for (const Flag& own : parsed.command->flags) known.push_back(own.name);
      }
      return Unknown("flag", name, known, is_long ? "--" : "-",
                     parsed.command == nullptr
                         ? absl::StrCat(see, "; a command's own flags stand behind it")
                         : absl::StrCat("see `switchyard ", parsed.command->name, " --help`"));
    }
    std::string value;
    if (flag->value.empty()) {
      if (equals != std::string::npos) {
        return absl::InvalidArgumentError(absl::StrCat("--", flag->name, " takes no value"));
      }
    } else if (equals != std::string::npos) {
      value = body.substr(equals + 1);
    } else if (i + 1 < args.size()) {
      value = args[++i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat(arg, " needs a value: ", flag->value));
    }
    parsed.flags[flag->name].push_back(value);
  }
  parsed.help = parsed.Has("help") || args.empty();
  if (parsed.help) return parsed;
  if (parsed.command == nullptr)
    return absl::InvalidArgumentError(absl::StrCat("no command\n", see));
  parsed.arguments.assign(words.begin() + 1, words.end());
  // Words in brackets may be left out.
  const std::vector<std::string> spelled =
      absl::StrSplit(parsed.command->arguments, ' ', absl::SkipEmpty());
  size_t least = 0;
  for (const std::string& word : spelled) least += word[0] == '[' ? 0 : 1;
  if (parsed.arguments.size() < least || parsed.arguments.size() > spelled.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "`", parsed.command->name, "` takes ",
        spelled.empty()       ? "no argument"
        : spelled.size() == 1 ? absl::StrCat("one argument, ", parsed.command->arguments)
                              : parsed.command->arguments,
        ", found ", parsed.arguments.size(), "\nsee `switchyard ", parsed.command->name,
        " --help`"));
  }
  const std::string format = parsed.Get("output", "table");
  if (format != "table" && format != "json" && format != "yaml") {
    return absl::InvalidArgumentError(
        absl::StrCat("-o ", format, ": expected table, json or yaml"));
  }
  return parsed;
}

std::string HelpText() {
  std::string out =
      "switchyard: fine-tune Mixture-of-Experts language models as jobs of a service.\n\n"
      "Usage: switchyard COMMAND [ARGUMENT] [FLAGS]\n\nCommands:\n";
  for (const Command& command : Commands()) {
    if (command.hidden) continue;
    absl::StrAppendFormat(&out, "  %-20s %s\n", absl::StrCat(command.name, " ", command.arguments),
                          command.summary);
  }
  absl::StrAppend(
      &out, "\nFlags of every command:\n", FlagTable(GlobalFlags()),
      "\nA first job:\n"
      "  switchyard validate recipe.yaml         # is it right? says which keys are "
      "used, ignored, refused\n"
      "  switchyard plan recipe.yaml             # does it fit, could it start now?\n"
      "  switchyard submit recipe.yaml --watch   # Ctrl-C detaches, the job goes on\n"
      "  switchyard checkpoints JOB              # where the results are\n"
      "\nExit codes: 0 ok; 1 internal error; 2 usage or invalid recipe; 3 not found; 4 "
      "denied; 5 not possible in\n"
      "this state; 6 the coordinator cannot be reached; 7 a checkpoint is damaged; 8 two "
      "differ; 10 the job\n"
      "failed; 11 it was cancelled; 130 detached by Ctrl-C.\n\n`switchyard COMMAND --help` "
      "explains one command.\n");
  return out;
}

std::string HelpText(const Command& command) {
  return absl::StrCat("switchyard ", command.name, ": ", command.summary, ".\n\nUsage: switchyard ",
                      command.name, command.arguments.empty() ? "" : " ", command.arguments,
                      " [FLAGS]\n\n", command.details, command.details.empty() ? "" : "\n",
                      command.flags.empty() ? "" : "Flags:\n", FlagTable(command.flags),
                      command.flags.empty() ? "" : "\n", "Flags of every command:\n",
                      FlagTable(GlobalFlags()));
}

}  // namespace switchyard
