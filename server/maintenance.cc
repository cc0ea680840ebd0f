#include "server/maintenance.h"

#include <stdio.h>

#include <algorithm>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/edit_distance.h"
#include "server/store/backup.h"

namespace switchyard {
namespace {

struct Command {
  const char* name;
  std::vector<std::string> needs;  // flags, beside --state-dir
  const char* help;
};

const std::vector<Command>& Commands() {
  static const auto* commands = new std::vector<Command>{
      {"backup", {"to"}, "copy the database to FILE and prove the copy; a coordinator may run"},
      {"check", {}, "read all of the database: integrity and references"},
      {"restore",
       {"from", "artifact-root"},
       "put a backup in the database's place; the coordinator must have ended"},
      {"recover",
       {"artifact-root"},
       "without a backup: save what can be read of a damaged database"}};
  return *commands;
}

int Usage(const std::string& fault) {
  fprintf(stderr, "switchyardd: %s\n%s", fault.c_str(), MaintenanceHelp().c_str());
  return 2;
}

int Fail(const absl::Status& status) {
  fprintf(stderr, "switchyardd: %s\n", std::string(status.message()).c_str());
  return 1;
}

void Print(const DatabaseSummary& s) {
  printf("%s\n", absl::StrCat("schema ", s.schema_version, ", epoch ", s.epoch, ", restored ",
                              s.restore_generation, " times: ", s.jobs, " jobs (", s.final_jobs,
                              " ended), ", s.checkpoints, " checkpoints, ", s.events, " events")
                     .c_str());
}

void PrintList(const char* what, const std::vector<std::string>& items) {
  for (const std::string& item : items) printf("%s: %s\n", what, item.c_str());
}

void Print(const RestoreReport& report) {
  Print(report.restored);
  if (!report.replaced.empty()) printf("the former database is %s\n", report.replaced.c_str());
  PrintList("published after the backup, taken over", report.adopted_checkpoints);
  PrintList("no longer there, marked as deleted", report.missing_checkpoints);
  PrintList("a job that the database does not know", report.unknown_jobs);
  printf("the next start places nothing until every lease of the time before has ended\n");
}

}  // namespace

bool IsMaintenanceCommand(const std::string& word) {
  return std::any_of(Commands().begin(), Commands().end(),
                     [&](const Command& c) { return word == c.name; });
}

std::string MaintenanceHelp() {
  std::string text = "\nsubcommands (of a state folder, instead of running):\n";
  for (const Command& command : Commands()) {
    std::string usage = absl::StrCat("  switchyardd ", command.name, " --state-dir DIR");
    for (const std::string& flag : command.needs) {
      absl::StrAppend(&usage, " --", flag, flag == "artifact-root" ? " DIR" : " FILE");
    }
    absl::StrAppend(&text, usage, "\n      ", command.help, "\n");
  }
  return text;
}

int RunMaintenance(const std::vector<std::string>& arguments) {
  const auto command = std::find_if(Commands().begin(), Commands().end(),
                                    [&](const Command& c) { return arguments[0] == c.name; });
  std::vector<std::string> known = command->needs;
  known.push_back("state-dir");
  std::map<std::string, std::string> flags;
  for (size_t i = 1; i < arguments.size(); ++i) {
    if (!absl::StartsWith(arguments[i], "--")) {
      return Usage(absl::StrCat("unexpected argument '", arguments[i], "'"));
    }
    const size_t equals = arguments[i].find('=');
    const std::string name =
        arguments[i].substr(2, equals == std::string::npos ? equals : equals - 2);
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      const std::string nearest = Nearest(name, known);
      return Usage(absl::StrCat("unknown flag --", name, nearest.empty() ? "" : "; did you mean --",
                                nearest));
    }
    if (equals != std::string::npos) {
      flags[name] = arguments[i].substr(equals + 1);
    } else if (i + 1 < arguments.size()) {
      flags[name] = arguments[++i];
    }
  }
  for (const std::string& name : known) {
    if (flags[name].empty()) return Usage(absl::StrCat("--", name, " is missing"));
  }
  if (arguments[0] == "backup" || arguments[0] == "check") {
    const auto done = arguments[0] == "backup" ? BackUp(flags["state-dir"], flags["to"])
                                               : CheckState(flags["state-dir"]);
    if (!done.ok()) return Fail(done.status());
    Print(*done);
    return 0;
  }
  if (arguments[0] == "restore") {
    const auto done =
        Restore(flags["state-dir"], flags["from"], flags["artifact-root"], absl::Now());
    if (!done.ok()) return Fail(done.status());
    Print(*done);
    return 0;
  }
  const auto done = Recover(flags["state-dir"], flags["artifact-root"], absl::Now());
  if (!done.ok()) return Fail(done.status());
  printf("%d rows could be read\n", static_cast<int>(done->rows));
  PrintList("a part of this table could not be read", done->damaged_tables);
  Print(done->restored);
  return 0;
}

}  // namespace switchyard
