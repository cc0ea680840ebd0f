// list, get, cancel, pause, resume and retry: one call, one table.
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/edit_distance.h"
#include "client/commands.h"
#include "client/follow.h"

namespace switchyard {
namespace {

absl::Time ToTime(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

std::string When(const google::protobuf::Timestamp& time) {
  if (time.seconds() == 0) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S %Z", ToTime(time), absl::LocalTimeZone());
}

std::string StepOf(const v1::Progress& progress) {
  if (progress.step() == 0 && progress.total_steps() == 0) return "-";
  return absl::StrCat(progress.step(), "/", progress.total_steps());
}

// Why the job is as it is, in one line.
std::string Reason(const v1::Job& job) {
  if (job.state() == v1::Job::FAILED) {
    return absl::StrCat(v1::FailureReason_Name(job.failure().reason()), ": ",
                        job.failure().message());
  }
  if (job.pending_reason() != v1::PENDING_REASON_UNSPECIFIED) {
    std::string reason = v1::PendingReason_Name(job.pending_reason()).substr(15);
    return absl::StrCat(reason, job.state_message().empty() ? "" : ": ", job.state_message());
  }
  return job.state_message();
}

absl::StatusOr<v1::Job::State> ParseState(const std::string& word) {
  v1::Job::State state;
  if (v1::Job::State_Parse(absl::AsciiStrToUpper(word), &state) &&
      state != v1::Job::STATE_UNSPECIFIED) {
    return state;
  }
  std::vector<std::string> names;
  for (int i = v1::Job::State_MIN + 1; i <= v1::Job::State_MAX; ++i) {
    names.push_back(absl::AsciiStrToLower(v1::Job::State_Name(i)));
  }
  const std::string near = Nearest(absl::AsciiStrToLower(word), names);
  return absl::InvalidArgumentError(
      absl::StrCat("--state ", word, ": expected one of ", absl::StrJoin(names, ", "),
                   near.empty() ? "" : absl::StrCat(": did you mean ", near, "?")));
}

void PrintJob(const v1::GetJobResponse& response, const CommandContext& context) {
  const v1::Job& job = response.job();
  std::vector<std::vector<std::string>> rows = {{"name", job.name()},
                                                {"state", v1::Job::State_Name(job.state())}};
  const auto add = [&](const std::string& key, const std::string& value) {
    if (!value.empty()) rows.push_back({key, value});
  };
  add("why", Reason(job));
  for (const v1::Condition& condition : job.conditions()) {
    add(absl::AsciiStrToLower(v1::Condition::Type_Name(condition.type())), condition.message());
  }
  add("display name", job.display_name());
  std::vector<std::string> labels;
  for (const auto& [key, value] : job.labels()) labels.push_back(absl::StrCat(key, "=", value));
  std::sort(labels.begin(), labels.end());
  add("labels", absl::StrJoin(labels, ", "));
  add("model", job.spec().model().path());
  add("ranks", absl::StrCat(job.spec().parallel().num_ranks(), ", experts over ",
                            job.spec().parallel().ep_size()));
  const v1::Progress& progress = job.progress();
  if (progress.step() > 0) {
    add("step", StepOf(progress));
    add("loss", HumanLoss(progress.loss()));
    if (progress.validation_loss() != 0)
      add("validation loss", HumanLoss(progress.validation_loss()));
    add("tokens/s", HumanCount(progress.tokens_per_second()));
    add("memory", HumanBytes(progress.memory_bytes()));
    if (progress.last_checkpoint_step() > 0) {
      add("last checkpoint", absl::StrCat("step ", progress.last_checkpoint_step()));
    }
  }
  add("created", When(job.create_time()));
  add("started", When(job.start_time()));
  add("ended", When(job.end_time()));
  context.terminal.out << Table({"JOB", ShortName(job.name())}, rows);
  if (response.attempts_size() > 0) {
    std::vector<std::vector<std::string>> attempts;
    for (const v1::Attempt& attempt : response.attempts()) {
      attempts.push_back({absl::StrCat(attempt.number()), v1::Attempt::State_Name(attempt.state()),
                          absl::StrJoin(attempt.nodes(), ","), When(attempt.create_time()),
                          attempt.has_failure()
                              ? absl::StrCat(v1::FailureReason_Name(attempt.failure().reason()),
                                             ": ", attempt.failure().message())
                              : ""});
    }
    context.terminal.out << "\n"
                         << Table({"ATTEMPT", "STATE", "NODES", "CREATED", "FAILURE"}, attempts);
  }
  if (job.state() == v1::Job::FAILED) context.terminal.out << "\n" << DescribeFailure(job);
}

}  // namespace

int RunList(CommandContext& context) {
  v1::ListJobsRequest request;
  request.set_parent(context.parent);
  for (const std::string& word : context.parsed.All("state")) {
    absl::StatusOr<v1::Job::State> state = ParseState(word);
    if (!state.ok()) return context.FailUsage(state.status().message());
    request.add_states(*state);
  }
  for (const std::string& label : context.parsed.All("label")) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos || equals == 0) {
      return context.FailUsage(absl::StrCat("--label ", label, ": expected KEY=VALUE"));
    }
    (*request.mutable_labels())[label.substr(0, equals)] = label.substr(equals + 1);
  }
  int limit = 50;
  if (!absl::SimpleAtoi(context.parsed.Get("limit", "50"), &limit) || limit < 0) {
    return context.FailUsage(
        absl::StrCat("--limit ", context.parsed.Get("limit"), ": expected a number, 0 for all"));
  }
  v1::ListJobsResponse all;
  do {
    request.set_page_size(limit == 0 ? 1000 : std::min(1000, limit - all.jobs_size()));
    absl::StatusOr<v1::ListJobsResponse> page =
        context.connection.Call(&v1::JobService::Stub::ListJobs, request);
    if (!page.ok()) return context.Fail(page.status(), "list jobs");
    all.mutable_jobs()->MergeFrom(page->jobs());
    all.set_next_page_token(page->next_page_token());
    request.set_page_token(page->next_page_token());
  } while (!all.next_page_token().empty() && (limit == 0 || all.jobs_size() < limit));
  if (context.format != Format::kTable) {
    context.terminal.out << Print(MessageToJson(all), context.format);
    return 0;
  }
  std::vector<std::vector<std::string>> rows;
  for (const v1::Job& job : all.jobs()) {
    const bool stepped = job.progress().step() > 0;
    rows.push_back({ShortName(job.name()), v1::Job::State_Name(job.state()), StepOf(job.progress()),
                    stepped ? HumanLoss(job.progress().loss()) : "-",
                    HumanAge(job.create_time(), context.terminal.now()), Reason(job)});
  }
  context.terminal.out << Table({"JOB", "STATE", "STEP", "LOSS", "CREATED", "WHY"}, rows);
  if (!all.next_page_token().empty()) {
    context.terminal.err << "switchyard: there are more; --limit 0 shows all" << std::endl;
  }
  return 0;
}

int RunGet(CommandContext& context) {
  v1::GetJobRequest request;
  request.set_name(context.JobName());
  absl::StatusOr<v1::GetJobResponse> response =
      context.connection.Call(&v1::JobService::Stub::GetJob, request);
  if (!response.ok()) return context.Fail(response.status(), absl::StrCat("get ", request.name()));
  if (context.format == Format::kTable) {
    PrintJob(*response, context);
  } else {
    context.terminal.out << Print(MessageToJson(*response), context.format);
  }
  return 0;
}

int RunCancel(CommandContext& context) {
  v1::CancelJobRequest request;
  request.set_name(context.JobName());
  request.set_request_id(MakeRequestId());
  const absl::StatusOr<absl::optional<int64_t>> grace = GraceSeconds(context);
  if (!grace.ok()) return context.FailUsage(grace.status().message());
  if (grace->has_value()) request.mutable_grace_period()->set_seconds(**grace);
  absl::StatusOr<v1::CancelJobResponse> response =
      context.connection.Call(&v1::JobService::Stub::CancelJob, request);
  if (!response.ok())
    return context.Fail(response.status(), absl::StrCat("cancel ", request.name()));
  const v1::Job& job = response->job();
  if (context.format != Format::kTable) {
    context.terminal.out << Print(MessageToJson(job), context.format);
  } else if (job.state() == v1::Job::CANCELLED) {
    context.terminal.out << ShortName(job.name()) << " is cancelled\n";
  } else {
    context.terminal.out << ShortName(job.name()) << " is stopping ("
                         << v1::Job::State_Name(job.state())
                         << "); it is cancelled when its processes are gone\n";
  }
  return 0;
}

absl::StatusOr<absl::optional<int64_t>> GraceSeconds(const CommandContext& context) {
  if (!context.parsed.Has("grace-period")) return absl::optional<int64_t>();
  int64_t seconds = 0;
  const std::string text = context.parsed.Get("grace-period");
  if (!absl::SimpleAtoi(text, &seconds) || seconds < 0 || seconds > 86400) {
    return absl::InvalidArgumentError(
        absl::StrCat("--grace-period ", text, ": expected 0 to 86400 seconds"));
  }
  return absl::optional<int64_t>(seconds);
}

int RunPause(CommandContext& context) {
  v1::PauseJobRequest request;
  request.set_name(context.JobName());
  request.set_request_id(MakeRequestId());
  const absl::StatusOr<absl::optional<int64_t>> grace = GraceSeconds(context);
  if (!grace.ok()) return context.FailUsage(grace.status().message());
  if (grace->has_value()) request.mutable_grace_period()->set_seconds(**grace);
  const absl::StatusOr<v1::PauseJobResponse> response =
      context.connection.Call(&v1::JobService::Stub::PauseJob, request);
  if (!response.ok()) {
    return context.Fail(response.status(), absl::StrCat("pause ", request.name()));
  }
  const v1::Job& job = response->job();
  if (context.format != Format::kTable) {
    context.terminal.out << Print(MessageToJson(job), context.format);
  } else if (job.state() == v1::Job::PAUSED) {
    context.terminal.out << ShortName(job.name()) << " is paused\n";
  } else {
    context.terminal.out << ShortName(job.name()) << " is stopping ("
                         << v1::Job::State_Name(job.state())
                         << "); it is paused when its checkpoint is written\n";
  }
  return 0;
}

int RunRetry(CommandContext& context) {
  v1::RetryJobRequest request;
  request.set_name(context.JobName());
  request.set_job_id(context.parsed.Get("name"));
  request.set_request_id(MakeRequestId());
  const absl::StatusOr<v1::RetryJobResponse> response =
      context.connection.Call(&v1::JobService::Stub::RetryJob, request);
  if (!response.ok()) {
    return context.Fail(response.status(), absl::StrCat("retry ", request.name()));
  }
  const v1::Job& job = response->job();
  if (context.format != Format::kTable) {
    context.terminal.out << Print(MessageToJson(job), context.format);
    return 0;
  }
  const std::string& from = job.spec().checkpoint().restore_from();
  context.terminal.out << ShortName(job.name()) << " is " << v1::Job::State_Name(job.state())
                       << (from.empty() ? ", from the beginning" : ", from " + from) << "\n";
  return 0;
}

int RunResume(CommandContext& context) {
  v1::ResumeJobRequest request;
  request.set_name(context.JobName());
  request.set_request_id(MakeRequestId());
  const absl::StatusOr<v1::ResumeJobResponse> response =
      context.connection.Call(&v1::JobService::Stub::ResumeJob, request);
  if (!response.ok()) {
    return context.Fail(response.status(), absl::StrCat("resume ", request.name()));
  }
  const v1::Job& job = response->job();
  if (context.format != Format::kTable) {
    context.terminal.out << Print(MessageToJson(job), context.format);
  } else {
    context.terminal.out << ShortName(job.name()) << " is " << v1::Job::State_Name(job.state())
                         << "\n";
  }
  return 0;
}

}  // namespace switchyard
