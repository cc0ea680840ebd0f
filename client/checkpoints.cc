// checkpoints: list, pin, unpin, delete; the other verbs have files of their own.
#include "client/checkpoints.h"

#include <sys/stat.h>

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/edit_distance.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

using Stub = v1::CheckpointService::Stub;

struct Verb {
  const char* name;
  size_t least, most;  // words behind it
  const char* words;
};
constexpr Verb kVerbs[] = {
    {"list", 1, 1, "JOB"},
    {"verify", 1, 1, "CHECKPOINT"},
    {"download", 2, 2, "CHECKPOINT FOLDER"},
    {"export", 2, 2, "CHECKPOINT FOLDER"},
    {"diff", 2, 2, "CHECKPOINT CHECKPOINT"},
    {"pin", 1, 1, "CHECKPOINT"},
    {"unpin", 1, 1, "CHECKPOINT"},
    {"delete", 1, 1, "CHECKPOINT"},
};

absl::StatusOr<v1::ListCheckpointsResponse> ListAll(CommandContext& context,
                                                    const std::string& job) {
  v1::ListCheckpointsRequest request;
  request.set_parent(job);
  request.set_page_size(1000);
  v1::ListCheckpointsResponse all;
  do {
    ASSIGN_OR_RETURN(const v1::ListCheckpointsResponse page,
                     context.connection.CallCheckpoints(&Stub::ListCheckpoints, request));
    all.mutable_checkpoints()->MergeFrom(page.checkpoints());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return all;
}

std::string JobNameOf(const CommandContext& context, const std::string& job) {
  return absl::StartsWith(job, "projects/") ? job : absl::StrCat(context.parent, "/jobs/", job);
}

std::string Marks(const v1::Checkpoint& checkpoint) {
  std::vector<std::string> marks;
  if (checkpoint.final()) marks.push_back("final");
  if (checkpoint.pinned()) marks.push_back("pinned");
  return marks.empty() ? "" : absl::StrCat(" (", absl::StrJoin(marks, ", "), ")");
}

int List(CommandContext& context, const std::string& word) {
  const std::string job = JobNameOf(context, word);
  const absl::StatusOr<v1::ListCheckpointsResponse> all = ListAll(context, job);
  if (!all.ok()) {
    return context.Fail(all.status(), absl::StrCat("list the checkpoints of ", job));
  }
  if (context.format != Format::kTable) {
    context.terminal.out << Print(MessageToJson(*all), context.format);
    return 0;
  }
  std::vector<std::vector<std::string>> rows;
  for (const v1::Checkpoint& checkpoint : all->checkpoints()) {
    rows.push_back(
        {absl::StrCat(checkpoint.step(), Marks(checkpoint)), HumanLoss(checkpoint.loss()),
         checkpoint.validation_loss() != 0 ? HumanLoss(checkpoint.validation_loss()) : "-",
         HumanBytes(checkpoint.size_bytes()),
         HumanAge(checkpoint.create_time(), context.terminal.now()), checkpoint.path()});
  }
  context.terminal.out << Table({"STEP", "LOSS", "VALIDATION", "SIZE", "CREATED", "PATH"}, rows);
  return 0;
}

// pin, unpin or delete.
template <typename Request, typename Response>
int Change(CommandContext& context, Request request, const char* verb, const char* done,
           grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*)) {
  const std::string& word = context.parsed.arguments[1];
  // What is changed for good should be said in full.
  if (NamesFolder(word) ||
      !(absl::StrContains(word, "@") || absl::StrContains(word, "/checkpoints/step-"))) {
    return context.FailUsage(
        absl::StrCat("checkpoints ", verb, " ", word, ": say which one, as JOB@STEP"));
  }
  const absl::StatusOr<std::string> name = FindCheckpoint(context, word);
  if (!name.ok()) return FailCheckpoint(context, name.status(), absl::StrCat(verb, " ", word));
  request.set_name(*name);
  const absl::StatusOr<Response> response = context.connection.CallCheckpoints(method, request);
  if (!response.ok()) return context.Fail(response.status(), absl::StrCat(verb, " ", *name));
  if (context.format == Format::kTable) {
    context.terminal.out << *name << " " << done << "\n";
  } else {
    context.terminal.out << Print(MessageToJson(*response), context.format);
  }
  return 0;
}

}  // namespace

bool NamesFolder(const std::string& checkpoint) {
  if (checkpoint == "." || checkpoint == "..") return true;
  return absl::StrContains(checkpoint, "/") && !absl::StartsWith(checkpoint, "projects/");
}

absl::StatusOr<std::string> FindCheckpoint(CommandContext& context, const std::string& checkpoint) {
  if (absl::StrContains(checkpoint, "/checkpoints/")) return checkpoint;
  const size_t at = checkpoint.find('@');
  const std::string job = JobNameOf(context, checkpoint.substr(0, at));
  if (at != std::string::npos) {
    int64_t step = 0;
    const std::string text = checkpoint.substr(at + 1);
    if (!absl::SimpleAtoi(text, &step) || step < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", text, "' behind @ is not the number of a step"));
    }
    return absl::StrCat(job, "/checkpoints/step-", step);
  }
  v1::ListCheckpointsRequest request;
  request.set_parent(job);
  request.set_page_size(1);
  ASSIGN_OR_RETURN(const v1::ListCheckpointsResponse newest,
                   context.connection.CallCheckpoints(&Stub::ListCheckpoints, request));
  if (newest.checkpoints().empty()) {
    return absl::NotFoundError(absl::StrCat("job ", job, " has no checkpoint"));
  }
  return newest.checkpoints(0).name();
}

absl::StatusOr<std::string> LocalFolder(CommandContext& context, const std::string& checkpoint) {
  if (NamesFolder(checkpoint)) return checkpoint;
  ASSIGN_OR_RETURN(const std::string name, FindCheckpoint(context, checkpoint));
  v1::GetCheckpointRequest request;
  request.set_name(name);
  ASSIGN_OR_RETURN(const v1::GetCheckpointResponse response,
                   context.connection.CallCheckpoints(&Stub::GetCheckpoint, request));
  const std::string& path = response.checkpoint().path();
  struct stat st;
  if (::stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) return path;
  return absl::FailedPreconditionError(
      absl::StrCat(name, " is in ", path,
                   ", which is not on this machine; `switchyard checkpoints "
                   "download ",
                   checkpoint, " FOLDER` brings it here"));
}

int FailCheckpoint(const CommandContext& context, const absl::Status& status,
                   const std::string& doing) {
  if (FromServer(status) || absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
      absl::IsUnimplemented(status) || context.terminal.interrupt.triggered()) {
    return context.Fail(status, doing);
  }
  context.terminal.err << "switchyard: " << doing << ": " << status.message() << std::endl;
  return ExitCode(status);
}

int RunCheckpoints(CommandContext& context) {
  const std::vector<std::string>& words = context.parsed.arguments;
  const auto verb = std::find_if(std::begin(kVerbs), std::end(kVerbs),
                                 [&](const Verb& v) { return words[0] == v.name; });
  if (verb == std::end(kVerbs)) {
    if (words.size() == 1) return List(context, words[0]);  // as it was before there were verbs
    std::vector<std::string> names;
    for (const Verb& v : kVerbs) names.push_back(v.name);
    const std::string near = Nearest(words[0], names);
    return context.FailUsage(
        absl::StrCat("checkpoints ", words[0], ": expected one of ", absl::StrJoin(names, ", "),
                     near.empty() ? "" : absl::StrCat(": did you mean ", near, "?")));
  }
  if (words.size() - 1 < verb->least || words.size() - 1 > verb->most) {
    return context.FailUsage(absl::StrCat("`checkpoints ", verb->name, "` needs ", verb->words));
  }
  if (words[0] == "list") return List(context, words[1]);
  if (words[0] == "verify") return RunVerify(context);
  if (words[0] == "download") return RunDownload(context);
  if (words[0] == "export") return RunExport(context);
  if (words[0] == "diff") return RunDiff(context);
  if (words[0] == "pin") {
    return Change(context, v1::PinCheckpointRequest(), "pin", "is pinned", &Stub::PinCheckpoint);
  }
  if (words[0] == "unpin") {
    return Change(context, v1::UnpinCheckpointRequest(), "unpin", "is not pinned",
                  &Stub::UnpinCheckpoint);
  }
  v1::DeleteCheckpointRequest request;
  request.set_final(context.parsed.Has("final"));
  return Change(context, request, "delete", "is deleted", &Stub::DeleteCheckpoint);
}

}  // namespace switchyard
