#include "server/api/validate.h"

#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

class Faults {
 public:
  template <typename... Args>
  void Add(absl::string_view field, const Args&... description) {
    out_.push_back({absl::StrCat("spec.", field), absl::StrCat(description...)});
  }
  void AtLeast(absl::string_view field, int64_t value, int64_t least) {
    if (value < least) Add(field, "is ", value, ", must be at least ", least);
  }
  void NotNegative(absl::string_view field, double value) {
    if (!std::isfinite(value) || value < 0) Add(field, "is ", value, ", must be 0 or more");
  }
  void Beta(absl::string_view field, double value) {
    if (!(value >= 0 && value < 1)) Add(field, "is ", value, ", must be in [0, 1)");
  }
  void OneOf(absl::string_view field, const std::string& value, const char* a, const char* b) {
    if (value != a && value != b) Add(field, "is '", value, "', must be ", a, " or ", b);
  }
  template <typename Enum>
  void Known(absl::string_view field, Enum value, bool (*valid)(int)) {
    if (!valid(value)) Add(field, "has the value ", static_cast<int>(value), ", which is unknown");
  }
  std::vector<FieldViolation> Take() { return std::move(out_); }

 private:
  std::vector<FieldViolation> out_;
};

void CheckModel(const v1::ModelSpec& model, bool cpu_only, Faults& faults) {
  if (!absl::StartsWith(model.path(), "/")) {
    faults.Add("model.path", "is '", model.path(), "', must be an absolute path on the nodes");
  }
  faults.OneOf("model.dtype", model.dtype(), "float32", "bfloat16");
  faults.Known("model.aux_loss", model.aux_loss(), v1::AuxLoss_IsValid);
  if (model.has_aux_loss_coef()) faults.NotNegative("model.aux_loss_coef", model.aux_loss_coef());
  faults.Known("model.activation_memory", model.activation_memory(), v1::ActivationMemory_IsValid);
  if (model.activation_memory() == v1::ACTIVATION_MEMORY_OFFLOAD && cpu_only) {
    faults.Add(
        "model.activation_memory",
        "offload moves activations from a GPU to the host and is not available on CPU ranks; "
        "use lean or full_recompute");
  }
  faults.AtLeast("model.loss_chunk_tokens", model.loss_chunk_tokens(), 0);
}

void CheckDataset(const std::string& field, const v1::DatasetSpec& dataset, Faults& faults) {
  if (dataset.paths().empty()) faults.Add(absl::StrCat(field, ".paths"), "is empty");
  for (const std::string& path : dataset.paths()) {
    if (!absl::StartsWith(path, "/")) {
      faults.Add(absl::StrCat(field, ".paths"), "'", path, "' is not an absolute path");
    }
  }
  faults.Known(absl::StrCat(field, ".format"), dataset.format(), v1::DatasetFormat_IsValid);
  faults.Known(absl::StrCat(field, ".loss_mask"), dataset.loss_mask(), v1::LossMask_IsValid);
  faults.AtLeast(absl::StrCat(field, ".limit_rows"), dataset.limit_rows(), 0);
  if (dataset.format() == v1::DATASET_FORMAT_COLUMN_MAPPED &&
      !dataset.column_mapping().contains("answer")) {
    faults.Add(absl::StrCat(field, ".column_mapping"), "names no column for 'answer'");
  }
}

void CheckData(const v1::DataSpec& data, Faults& faults) {
  CheckDataset("data.train", data.train(), faults);
  std::set<std::string> names;
  for (int i = 0; i < data.validation_size(); ++i) {
    const std::string field = absl::StrCat("data.validation[", i, "]");
    CheckDataset(field, data.validation(i), faults);
    if (!names.insert(data.validation(i).name()).second) {
      faults.Add(absl::StrCat(field, ".name"), "'", data.validation(i).name(), "' is there twice");
    }
  }
  faults.AtLeast("data.seq_length", data.seq_length(), 2);
  faults.AtLeast("data.pack_length", data.pack_length(), 0);
  faults.Known("data.overlong", data.overlong(), v1::Overlong_IsValid);
  faults.Known("data.packing", data.packing(), v1::Packing_IsValid);
  faults.Known("data.malformed_rows", data.malformed_rows(), v1::MalformedRows_IsValid);
}

void CheckBatch(const v1::BatchSpec& batch, int64_t num_ranks, Faults& faults) {
  faults.AtLeast("batch.global_batch_size", batch.global_batch_size(), 1);
  faults.AtLeast("batch.local_batch_size", batch.local_batch_size(), 1);
  faults.AtLeast("batch.max_steps", batch.max_steps(), 0);
  faults.AtLeast("batch.num_epochs", batch.num_epochs(), 0);
  faults.AtLeast("batch.val_every_steps", batch.val_every_steps(), 0);
  if (batch.max_steps() == 0 && batch.num_epochs() == 0) {
    faults.Add("batch.max_steps", "and num_epochs are both 0: one must end the job");
  }
  const int64_t rows = int64_t{batch.local_batch_size()} * num_ranks;
  if (rows > 0 && batch.global_batch_size() > 0 && batch.global_batch_size() % rows != 0) {
    faults.Add("batch.global_batch_size", "is ", batch.global_batch_size(),
               ", must be a multiple of local_batch_size x num_ranks = ", batch.local_batch_size(),
               " x ", num_ranks, " = ", rows);
  }
}

void CheckOptimizer(const v1::OptimizerSpec& optimizer, Faults& faults) {
  if (optimizer.kind() != v1::OPTIMIZER_KIND_ADAM && optimizer.kind() != v1::OPTIMIZER_KIND_ADAMW) {
    faults.Add("optimizer.kind", "must be ADAM or ADAMW");
  }
  faults.NotNegative("optimizer.lr", optimizer.lr());
  faults.Beta("optimizer.beta1", optimizer.beta1());
  faults.Beta("optimizer.beta2", optimizer.beta2());
  if (!std::isfinite(optimizer.eps()) || optimizer.eps() <= 0) {
    faults.Add("optimizer.eps", "is ", optimizer.eps(), ", must be more than 0");
  }
  faults.NotNegative("optimizer.weight_decay", optimizer.weight_decay());
  faults.NotNegative("optimizer.max_grad_norm", optimizer.max_grad_norm());
  faults.OneOf("optimizer.moment_dtype", optimizer.moment_dtype(), "float32", "bfloat16");
  if (!optimizer.gradient_dtype().empty()) {
    faults.OneOf("optimizer.gradient_dtype", optimizer.gradient_dtype(), "float32", "bfloat16");
  }
  faults.AtLeast("optimizer.max_nonfinite_steps", optimizer.max_nonfinite_steps(), 0);
}

void CheckSchedule(const v1::LrScheduleSpec& schedule, Faults& faults) {
  if (schedule.decay() == v1::LR_DECAY_UNSPECIFIED || !v1::LrDecay_IsValid(schedule.decay())) {
    faults.Add("lr_schedule.decay", "must be CONSTANT, LINEAR, COSINE, WSD or INVERSE_SQUARE_ROOT");
  }
  faults.AtLeast("lr_schedule.warmup_steps", schedule.warmup_steps(), 0);
  faults.AtLeast("lr_schedule.decay_steps", schedule.decay_steps(), 0);
  faults.AtLeast("lr_schedule.wsd_decay_steps", schedule.wsd_decay_steps(), 0);
  faults.NotNegative("lr_schedule.min_lr", schedule.min_lr());
  faults.NotNegative("lr_schedule.init_lr", schedule.init_lr());
  faults.Known("lr_schedule.wsd_tail", schedule.wsd_tail(), v1::WsdTail_IsValid);
}

void CheckParallel(const v1::ParallelSpec& parallel, Faults& faults) {
  const int64_t ranks = parallel.num_ranks();
  const int64_t ep = parallel.ep_size() == 0 ? 1 : parallel.ep_size();
  const int64_t replicas = parallel.dp_replicate_size() == 0 ? 1 : parallel.dp_replicate_size();
  faults.AtLeast("parallel.num_ranks", ranks, 1);
  faults.AtLeast("parallel.ep_size", parallel.ep_size(), 0);
  faults.AtLeast("parallel.dp_replicate_size", parallel.dp_replicate_size(), 0);
  faults.AtLeast("parallel.threads_per_rank", parallel.threads_per_rank(), 0);
  if (parallel.collective_timeout().seconds() < 0) {
    faults.Add("parallel.collective_timeout", "is negative");
  }
  if (ranks < 1 || ep < 1 || replicas < 1) return;
  if (ranks > 65536) faults.Add("parallel.num_ranks", "is ", ranks, ", at most 65536 are handled");
  if (ranks % ep != 0) {
    faults.Add("parallel.ep_size", "is ", ep, ", must divide num_ranks = ", ranks);
  }
  if (ranks % replicas != 0) {
    faults.Add("parallel.dp_replicate_size", "is ", replicas, ", must divide num_ranks = ", ranks);
  } else if (ranks % ep == 0 && (ranks / replicas) % ep != 0) {
    faults.Add("parallel.ep_size", "is ", ep, ", must divide the ", ranks / replicas,
               " ranks of one replica (num_ranks / dp_replicate_size)");
  }
}

}  // namespace

SpecCheck CheckSpec(const v1::JobSpec& spec) {
  SpecCheck check;
  Faults faults;
  CheckModel(spec.model(), spec.parallel().cpu_only(), faults);
  CheckData(spec.data(), faults);
  CheckBatch(spec.batch(), spec.parallel().num_ranks(), faults);
  CheckOptimizer(spec.optimizer(), faults);
  CheckSchedule(spec.lr_schedule(), faults);
  CheckParallel(spec.parallel(), faults);
  faults.AtLeast("checkpoint.every_steps", spec.checkpoint().every_steps(), 0);
  faults.AtLeast("checkpoint.keep_last", spec.checkpoint().keep_last(), 0);
  faults.AtLeast("checkpoint.keep_every_steps", spec.checkpoint().keep_every_steps(), 0);
  faults.AtLeast("checkpoint.keep_best", spec.checkpoint().keep_best(), 0);
  if (spec.checkpoint().keep_last() == 0) {
    if (spec.checkpoint().keep_every_steps() > 0) {
      faults.Add("checkpoint.keep_every_steps", "without checkpoint.keep_last all are kept");
    }
    if (spec.checkpoint().keep_best() > 0) {
      faults.Add("checkpoint.keep_best", "without checkpoint.keep_last all are kept");
    }
  }
  faults.AtLeast("checkpoint.max_shard_bytes", spec.checkpoint().max_shard_bytes(), 0);
  const std::string& restore = spec.checkpoint().restore_from();
  if (!restore.empty() && !absl::StartsWith(restore, "/")) {
    faults.Add("checkpoint.restore_from", "'", restore, "' is not an absolute path");
  }
  faults.AtLeast("retry.max_retries", spec.retry().max_retries(), 0);
  faults.AtLeast("retry.max_user_retries", spec.retry().max_user_retries(), 0);
  faults.AtLeast("retry.no_progress_limit", spec.retry().no_progress_limit(), 0);
  const int32_t priority = spec.schedule().priority();
  if (priority < -1000 || priority > 1000) {
    faults.Add("schedule.priority", "is ", priority, ", must be between -1000 and 1000");
  }
  if (spec.schedule().max_run_time().seconds() < 0 || spec.schedule().max_run_time().nanos() < 0) {
    faults.Add("schedule.max_run_time", "is negative");
  }

  if (absl::StartsWith(spec.model().path(), "/")) {
    absl::StatusOr<ModelConfig> model = ReadModelConfig(spec.model().path());
    if (model.ok()) {
      check.model = *std::move(model);
      const int64_t ep = spec.parallel().ep_size();
      if (ep > 0 && check.model->num_experts % ep != 0) {
        faults.Add("parallel.ep_size", "is ", ep,
                   ", must divide the model's num_experts = ", check.model->num_experts);
      }
    } else if (absl::IsInvalidArgument(model.status()) || absl::IsUnimplemented(model.status())) {
      faults.Add("model.path", spec.model().path(), ": ", model.status().message());
    }
  }
  check.violations = faults.Take();
  return check;
}

std::vector<FieldViolation> CheckJobFields(const v1::Job& job) {
  std::vector<FieldViolation> out;
  if (job.display_name().size() > 256) {
    out.push_back({"display_name", absl::StrCat("has ", job.display_name().size(),
                                                " bytes, at most 256 are kept")});
  }
  if (job.recipe().size() > (1 << 20)) {
    out.push_back({"recipe", absl::StrCat("has ", job.recipe().size(), " bytes, at most 1 MiB")});
  }
  if (job.labels_size() > 64) {
    out.push_back({"labels", absl::StrCat("there are ", job.labels_size(), ", at most 64")});
  }
  for (const auto& [key, value] : job.labels()) {
    if (key.empty() || key.size() > 63 || value.size() > 256) {
      out.push_back({absl::StrCat("labels[", key.substr(0, 63), "]"),
                     "a key has 1 to 63 bytes, a value at most 256"});
    }
  }
  return out;
}

}  // namespace switchyard
