// submit: recipe -> CreateJob, and on request the job's whole way.
#include "absl/strings/str_cat.h"
#include "client/commands.h"
#include "client/follow.h"

namespace switchyard {

int RunSubmit(CommandContext& context) {
  Terminal& terminal = context.terminal;
  const ParsedCommand& parsed = context.parsed;
  absl::StatusOr<LoadedRecipe> loaded = LoadRecipe(context);
  if (!loaded.ok()) return context.FailUsage(loaded.status().message());
  Recipe& recipe = loaded->recipe;
  if (const int code = ReportRefusals(context, recipe); code != 0) return code;

  // The nodes may see files that this machine does not: here that is a warning.
  Recipe checked = recipe;
  RefuseMissingFiles(checked);
  for (const ReportLine& line : checked.report) {
    if (line.verdict == Verdict::kRefused) {
      terminal.err << "switchyard: warning: " << line.key << ": " << line.note
                   << " on this machine; the nodes must have it" << std::endl;
    }
  }

  v1::CreateJobRequest request;
  request.set_parent(context.parent);
  request.set_job_id(parsed.Get("name"));
  request.set_request_id(parsed.Get("request-id", MakeRequestId()));
  request.set_validate_only(parsed.Has("validate-only"));
  *request.mutable_job()->mutable_spec() = recipe.spec;
  request.mutable_job()->set_display_name(recipe.display_name);
  request.mutable_job()->set_recipe(loaded->text);
  for (const auto& [key, value] : recipe.labels) {
    (*request.mutable_job()->mutable_labels())[key] = value;
  }

  absl::StatusOr<v1::CreateJobResponse> response =
      context.connection.Call(&v1::JobService::Stub::CreateJob, request);
  if (!response.ok()) {
    const int code = context.Fail(response.status(), "submit the job");
    if (OutcomeUnknown(response.status()) && !request.validate_only()) {
      terminal.err
          << "  It is not known whether the job was stored. To make sure without a second job, "
             "repeat with\n    --request-id "
          << request.request_id() << std::endl;
    }
    return code;
  }
  const v1::Job& job = response->job();
  if (request.validate_only()) {
    if (context.format != Format::kTable) {
      terminal.out << Print(MessageToJson(job), context.format);
    } else {
      terminal.out << "valid; nothing was stored\n";
    }
    return 0;
  }
  if (context.format == Format::kTable) {
    terminal.out << "submitted " << job.name() << " (" << v1::Job::State_Name(job.state()) << ")"
                 << std::endl;
    if (!parsed.Has("watch")) {
      terminal.out << "follow it: switchyard watch " << ShortName(job.name()) << "\n";
    }
  } else if (!parsed.Has("watch")) {
    terminal.out << Print(MessageToJson(job), context.format);
  }
  if (!parsed.Has("watch")) return 0;
  FollowOptions options;
  options.from_start = true;
  options.format = context.format;
  return FollowJob(context.connection, terminal, job.name(), options);
}

int RunWatch(CommandContext& context) {
  FollowOptions options;
  options.from_start = context.parsed.Has("from-start");
  options.format = context.format;
  return FollowJob(context.connection, context.terminal, context.JobName(), options);
}

}  // namespace switchyard
