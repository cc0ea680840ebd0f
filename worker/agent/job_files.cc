#include "worker/agent/job_files.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"

namespace switchyard {

absl::StatusOr<std::string> AttemptFolder(const std::string& state_dir, const AttemptId& attempt) {
  const std::vector<std::string> parts = absl::StrSplit(attempt.job.value(), '/');
  if (parts.size() != 4 || parts[0] != "projects" || parts[2] != "jobs" || parts[1].empty() ||
      parts[3].empty() || parts[1][0] == '.') {
    return absl::InvalidArgumentError(
        absl::StrCat("job '", attempt.job.value(), "': expected projects/{project}/jobs/{job}"));
  }
  return absl::StrCat(state_dir, "/attempts/", parts[1], ".", parts[3], ".", attempt.number);
}

std::string TokensFolder(const std::string& state_dir) { return state_dir + "/tokens"; }

std::string LeasePath(const std::string& state_dir) { return state_dir + "/lease"; }
std::string WithheldPath(const std::string& state_dir) { return state_dir + "/withheld.json"; }

absl::StatusOr<Json> SpecToJson(const v1::JobSpec& spec) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(spec, &text, options);
  if (!status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("write the job as JSON: ", status.ToString()));
  }
  return ParseJson(text, "the job");
}

absl::StatusOr<PrepResult> ParsePrepOutput(absl::string_view text) {
  const std::vector<absl::string_view> lines = absl::StrSplit(text, '\n', absl::SkipWhitespace());
  if (lines.empty()) return absl::InvalidArgumentError("switchyard-prep printed no result");
  ASSIGN_OR_RETURN(const Json result, ParseJson(lines.back(), "the result of switchyard-prep"));
  PrepResult prep;
  ASSIGN_OR_RETURN(prep.folder, JsonGet<std::string>(result, "folder"));
  if (const Json* report = JsonFind(result, "report"); report != nullptr) {
    prep.data_report = DumpJson(*report);
    if (const Json* train = JsonFind(*report, "train"); train != nullptr) {
      ASSIGN_OR_RETURN(prep.train_rows, JsonGetOr<int64_t>(*train, "rows", 0));
    }
  }
  return prep;
}

ConfigFrame MakeConfigFrame(const v1::Assign& assign, const Json& spec, const PrepResult& prep,
                            const Rendezvous& rendezvous, int local_rank, const DeviceInfo& device,
                            int num_cores) {
  ConfigFrame frame;
  frame.job = spec;
  frame.job_name = assign.job();
  frame.job_uid = assign.job_uid();
  frame.attempt = assign.attempt();
  frame.rank = assign.first_rank() + local_rank;
  frame.world_size = assign.world_size();
  frame.local_rank = local_rank;
  frame.master_address = rendezvous.address;
  frame.master_port = rendezvous.port;
  const bool on_cpu = device.is_cpu() || assign.spec().parallel().cpu_only();
  frame.device = on_cpu ? "cpu" : absl::StrCat("cuda:", device.index);
  const int wanted_threads = assign.spec().parallel().threads_per_rank();
  frame.threads = wanted_threads > 0 ? wanted_threads
                                     : std::max(1, num_cores / std::max(1, assign.devices_size()));
  frame.job_dir = assign.job_dir();
  frame.resume_from = assign.resume_from();
  frame.train_tokens = prep.folder + "/train.tok";
  for (const v1::DatasetSpec& dataset : assign.spec().data().validation()) {
    const std::string name = dataset.name().empty() ? "validation" : dataset.name();
    frame.validation_tokens.push_back(
        {name, absl::StrCat(prep.folder, "/validation-", name, ".tok")});
  }
  return frame;
}

v1::StepMetrics ToStepMetrics(const StepFrame& frame) {
  v1::StepMetrics metrics;
  metrics.set_step(frame.step);
  metrics.set_total_steps(frame.total_steps);
  metrics.set_epoch(frame.epoch);
  metrics.set_loss(frame.loss);
  metrics.set_aux_loss(frame.aux_loss);
  metrics.set_grad_norm(frame.grad_norm);
  metrics.set_learning_rate(frame.learning_rate);
  metrics.set_tokens(frame.tokens);
  metrics.set_supervised_tokens(frame.supervised_tokens);
  metrics.set_step_seconds(frame.step_seconds);
  metrics.set_tokens_per_second(frame.tokens_per_second);
  metrics.set_supervised_tokens_per_second(frame.supervised_tokens_per_second);
  metrics.set_memory_bytes(frame.memory_bytes);
  metrics.set_mfu(frame.mfu);
  metrics.set_expert_load_max_over_mean(frame.expert_load_max_over_mean);
  metrics.set_skipped(frame.skipped);
  metrics.set_skipped_total(frame.skipped_total);
  if (frame.validation_loss.has_value()) metrics.set_validation_loss(*frame.validation_loss);
  metrics.set_validation_name(frame.validation_name);
  for (const auto& [phase, seconds] : frame.phase_seconds) {
    (*metrics.mutable_phase_seconds())[phase] = seconds;
  }
  for (const double seconds : frame.rank_busy_seconds) metrics.add_rank_busy_seconds(seconds);
  return metrics;
}

std::string PlanMessage(const PlanFrame& plan) {
  const auto gigabytes = [](int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
  return absl::StrFormat(
      "planned memory of the fullest rank: %.3f GB (weights %.3f, gradients %.3f, optimizer %.3f, "
      "activations %.3f, buffers %.3f)",
      gigabytes(plan.total), gigabytes(plan.weights), gigabytes(plan.gradients),
      gigabytes(plan.optimizer), gigabytes(plan.activations), gigabytes(plan.buffers));
}

}  // namespace switchyard
