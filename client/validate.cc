// validate and plan: what a recipe says, and what it would need.
#include "absl/strings/str_cat.h"
#include "client/commands.h"

namespace switchyard {

int RunValidate(CommandContext& context) {
  Terminal& terminal = context.terminal;
  absl::StatusOr<LoadedRecipe> loaded = LoadRecipe(context);
  if (!loaded.ok()) return context.FailUsage(loaded.status().message());
  Recipe& recipe = loaded->recipe;
  if (!context.parsed.Has("no-files")) RefuseMissingFiles(recipe);
  if (context.format == Format::kTable) {
    std::vector<std::vector<std::string>> rows;
    for (const ReportLine& line : recipe.report) {
      rows.push_back({line.key, VerdictName(line.verdict), line.note});
    }
    terminal.out << Table({"KEY", "VERDICT", "NOTE"}, rows) << std::flush;
  } else {
    Json report = Json::array();
    for (const ReportLine& line : recipe.report) {
      report.push_back({{"key", line.key},
                        {"verdict", VerdictName(line.verdict)},
                        {"note", line.note},
                        {"line", line.line}});
    }
    Json all;
    all["refused"] = recipe.num_refused();
    all["report"] = std::move(report);
    all["display_name"] = recipe.display_name;
    all["labels"] = Json(recipe.labels);
    all["spec"] = MessageToJson(recipe.spec);
    terminal.out << Print(all, context.format) << std::flush;
  }
  return ReportRefusals(context, recipe);
}

int RunPlan(CommandContext& context) {
  absl::StatusOr<LoadedRecipe> loaded = LoadRecipe(context);
  if (!loaded.ok()) return context.FailUsage(loaded.status().message());
  if (const int code = ReportRefusals(context, loaded->recipe); code != 0) return code;
  v1::PlanJobRequest request;
  request.set_parent(context.parent);
  *request.mutable_spec() = loaded->recipe.spec;
  absl::StatusOr<v1::PlanJobResponse> plan =
      context.connection.Call(&v1::JobService::Stub::PlanJob, request);
  if (!plan.ok()) return context.Fail(plan.status(), "plan the job");
  if (context.format != Format::kTable) {
    context.terminal.out << Print(MessageToJson(*plan), context.format);
    return 0;
  }
  const auto yes_no = [](bool value) { return std::string(value ? "yes" : "no"); };
  const auto& memory = plan->memory();
  std::vector<std::vector<std::string>> rows = {
      {"fits memory", memory.available() > 0 ? yes_no(plan->fits_memory()) : "not known"},
      {"fits cluster", yes_no(plan->fits_cluster())},
      {"could start now", yes_no(plan->could_start_now())},
      {"ranks", absl::StrCat("wants ", plan->ranks_wanted(), "; ", plan->ranks_free(), " free of ",
                             plan->ranks_total())},
      {"jobs ahead", absl::StrCat(plan->queue_position())},
      {"parameters", absl::StrCat(HumanCount(static_cast<double>(plan->parameters())), ", ",
                                  HumanCount(static_cast<double>(plan->active_parameters())),
                                  " active per token")},
      {"micro-batches per step", absl::StrCat(plan->micro_batches_per_step())},
      {"memory of the fullest rank",
       absl::StrCat(
           HumanBytes(memory.total()),
           memory.available() > 0 ? absl::StrCat(" of ", HumanBytes(memory.available())) : "")},
      {"  weights", HumanBytes(memory.weights())},
      {"  gradients", HumanBytes(memory.gradients())},
      {"  optimizer", HumanBytes(memory.optimizer())},
      {"  activations", HumanBytes(memory.activations())},
      {"  buffers", HumanBytes(memory.buffers())}};
  for (const std::string& note : plan->notes()) rows.push_back({"note", note});
  context.terminal.out << Table({"PLAN", ""}, rows);
  return 0;
}

}  // namespace switchyard
