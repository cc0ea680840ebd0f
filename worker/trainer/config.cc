#include "worker/trainer/config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace switchyard {
namespace {

template <typename T>
struct Name {
  absl::string_view name;
  T value;
};

// Reads members of one object and collects what is wrong with them.
class Fields {
 public:
  Fields(const Json& object, std::string where, std::vector<std::string>* faults)
      : object_(object), where_(std::move(where)), faults_(faults) {}

  template <typename T>
  void Get(absl::string_view key, T* target) {
    absl::StatusOr<T> value = JsonGetOr<T>(object_, key, *target);
    if (value.ok()) {
      *target = *std::move(value);
    } else {
      Fault(key, value.status().message());
    }
  }

  // Proto3's unset numbers are 0: those keep the default.
  void GetUnless0(absl::string_view key, int64_t* target) {
    int64_t value = 0;
    Get(key, &value);
    if (value != 0) *target = value;
  }

  template <typename T, size_t N>
  void GetName(absl::string_view key, const Name<T> (&names)[N], T* target) {
    std::string text;
    Get(key, &text);
    if (text.empty() || absl::EndsWith(text, "_UNSPECIFIED")) return;
    for (const Name<T>& known : names) {
      if (known.name == text) {
        *target = known.value;
        return;
      }
    }
    Fault(key, absl::StrCat("unknown or unsupported value \"", text, "\""));
  }

  void GetDuration(absl::string_view key, absl::Duration* target) {
    std::string text;
    Get(key, &text);
    if (text.empty()) return;
    absl::Duration value;
    if (!absl::ParseDuration(text, &value)) {
      Fault(key, absl::StrCat("not a duration: \"", text, "\""));
    } else if (value != absl::ZeroDuration()) {
      *target = value;
    }
  }

  // The member as an object; an empty one when it is missing.
  const Json& Child(absl::string_view key) {
    static const Json* const kEmpty = new Json(Json::object());
    const Json* child = JsonFind(object_, key);
    if (child == nullptr) return *kEmpty;
    if (!child->is_object()) {
      Fault(key, "must be an object");
      return *kEmpty;
    }
    return *child;
  }

 private:
  void Fault(absl::string_view key, absl::string_view what) {
    faults_->push_back(absl::StrCat(where_, ".", key, ": ", what));
  }

  const Json& object_;
  std::string where_;
  std::vector<std::string>* faults_;
};

constexpr Name<TrainDtype> kDtypes[] = {{"float32", TrainDtype::kFloat32},
                                        {"bfloat16", TrainDtype::kBfloat16}};
constexpr Name<TrainConfig::Aux> kAuxLosses[] = {{"AUX_LOSS_HF", TrainConfig::Aux::kHf},
                                                 {"AUX_LOSS_MEGATRON", TrainConfig::Aux::kMegatron},
                                                 {"AUX_LOSS_OFF", TrainConfig::Aux::kOff}};
constexpr Name<TrainConfig::Activations> kActivations[] = {
    {"ACTIVATION_MEMORY_LEAN", TrainConfig::Activations::kLean},
    {"ACTIVATION_MEMORY_FULL_RECOMPUTE", TrainConfig::Activations::kFullRecompute},
    {"ACTIVATION_MEMORY_OFFLOAD", TrainConfig::Activations::kOffload}};
constexpr Name<bool> kDecoupled[] = {{"OPTIMIZER_KIND_ADAM", false},
                                     {"OPTIMIZER_KIND_ADAMW", true}};
constexpr Name<LrDecay> kDecays[] = {{"LR_DECAY_CONSTANT", LrDecay::kConstant},
                                     {"LR_DECAY_LINEAR", LrDecay::kLinear},
                                     {"LR_DECAY_COSINE", LrDecay::kCosine},
                                     {"LR_DECAY_WSD", LrDecay::kWsd},
                                     {"LR_DECAY_INVERSE_SQUARE_ROOT", LrDecay::kInverseSquareRoot}};
constexpr Name<WsdTail> kTails[] = {{"WSD_TAIL_LINEAR", WsdTail::kLinear},
                                    {"WSD_TAIL_COSINE", WsdTail::kCosine},
                                    {"WSD_TAIL_EXPONENTIAL", WsdTail::kExponential},
                                    {"WSD_TAIL_MINUS_SQRT", WsdTail::kMinusSqrt}};

void ReadModel(const Json& json, TrainConfig::Model* model, std::vector<std::string>* faults) {
  Fields fields(json, "job.model", faults);
  fields.Get("path", &model->path);
  fields.GetName("dtype", kDtypes, &model->dtype);
  fields.Get("random_init", &model->random_init);
  fields.Get("router_fp32", &model->router_fp32);
  fields.GetName("aux_loss", kAuxLosses, &model->aux_loss);
  if (JsonFind(json, "aux_loss_coef") != nullptr) {
    double coefficient = 0;
    fields.Get("aux_loss_coef", &coefficient);
    model->aux_loss_coef = coefficient;
  }
  fields.GetName("activation_memory", kActivations, &model->activations);
  fields.Get("loss_chunk_tokens", &model->loss_chunk_tokens);
}

void ReadOptimizer(const Json& json, TrainConfig* config, std::vector<std::string>* faults) {
  TrainConfig::Optimizer* optimizer = &config->optimizer;
  Fields fields(json, "job.optimizer", faults);
  fields.GetName("kind", kDecoupled, &optimizer->decoupled);
  fields.Get("lr", &config->lr_schedule.lr);
  fields.Get("beta1", &optimizer->beta1);
  fields.Get("beta2", &optimizer->beta2);
  fields.Get("eps", &optimizer->eps);
  fields.Get("weight_decay", &optimizer->weight_decay);
  fields.Get("max_grad_norm", &optimizer->max_grad_norm);
  fields.GetName("moment_dtype", kDtypes, &optimizer->moment_dtype);
  fields.GetName("gradient_dtype", kDtypes, &optimizer->gradient_dtype);
  fields.Get("exact_master", &optimizer->exact_master);
  fields.GetUnless0("max_nonfinite_steps", &optimizer->max_nonfinite_steps);
}

void ReadLrSchedule(const Json& json, LrSchedule* schedule, std::vector<std::string>* faults) {
  Fields fields(json, "job.lr_schedule", faults);
  fields.GetName("decay", kDecays, &schedule->decay);
  fields.Get("warmup_steps", &schedule->warmup_steps);
  fields.Get("decay_steps", &schedule->decay_steps);
  fields.Get("min_lr", &schedule->min_lr);
  fields.Get("init_lr", &schedule->init_lr);
  fields.Get("wsd_decay_steps", &schedule->wsd_decay_steps);
  fields.GetName("wsd_tail", kTails, &schedule->wsd_tail);
}

void ReadRest(const Json& job, TrainConfig* config, std::vector<std::string>* faults) {
  Fields root(job, "job", faults);
  Fields data(root.Child("data"), "job.data", faults);
  config->data.shuffle = false;  // proto3: an unset bool is false
  data.Get("shuffle", &config->data.shuffle);

  Fields batch(root.Child("batch"), "job.batch", faults);
  batch.GetUnless0("global_batch_size", &config->batch.global_batch_size);
  batch.GetUnless0("local_batch_size", &config->batch.local_batch_size);
  batch.Get("max_steps", &config->batch.max_steps);
  batch.Get("num_epochs", &config->batch.num_epochs);
  batch.Get("val_every_steps", &config->batch.val_every_steps);

  Fields parallel(root.Child("parallel"), "job.parallel", faults);
  parallel.GetUnless0("ep_size", &config->parallel.ep_size);
  parallel.GetUnless0("dp_replicate_size", &config->parallel.dp_replicate_size);
  config->parallel.reshard_after_forward = false;
  parallel.Get("reshard_after_forward", &config->parallel.reshard_after_forward);
  parallel.GetDuration("collective_timeout", &config->parallel.collective_timeout);

  Fields checkpoint(root.Child("checkpoint"), "job.checkpoint", faults);
  checkpoint.Get("every_steps", &config->checkpoint.every_steps);
  checkpoint.Get("every_epoch", &config->checkpoint.every_epoch);
  checkpoint.Get("save_optimizer", &config->checkpoint.save_optimizer);
  checkpoint.GetUnless0("max_shard_bytes", &config->checkpoint.max_shard_bytes);
  checkpoint.Get("restore_from", &config->checkpoint.restore_from);
}

}  // namespace

absl::StatusOr<TrainConfig> ReadTrainConfig(const ConfigFrame& frame) {
  if (!frame.job.is_object()) {
    return absl::InvalidArgumentError("config: job must be an object");
  }
  TrainConfig config;
  std::vector<std::string> faults;
  config.run = {frame.job_name,
                frame.job_uid,
                frame.attempt,
                frame.rank,
                frame.world_size,
                frame.master_address,
                frame.master_port,
                frame.device,
                frame.threads,
                frame.job_dir,
                frame.resume_from,
                42,
                false};
  config.data.train_tokens = frame.train_tokens;
  config.data.validation_tokens = frame.validation_tokens;

  Fields root(frame.job, "job", &faults);
  int64_t seed = 42;
  root.Get("seed", &seed);
  if (seed < 0 || seed > int64_t{0xFFFFFFFF}) {
    faults.push_back(absl::StrCat("job.seed: ", seed, " is not a uint32"));
  }
  config.run.seed = static_cast<uint32_t>(seed);
  root.Get("deterministic", &config.run.deterministic);
  ReadModel(root.Child("model"), &config.model, &faults);
  ReadOptimizer(root.Child("optimizer"), &config, &faults);
  config.lr_schedule_spec = root.Child("lr_schedule");
  ReadLrSchedule(config.lr_schedule_spec, &config.lr_schedule, &faults);
  ReadRest(frame.job, &config, &faults);
  if (!faults.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("config: ", absl::StrJoin(faults, "; ")));
  }
  return config;
}

std::vector<std::string> TrainConfig::Validate() const {
  std::vector<std::string> faults;
  const auto require = [&faults](bool good, const auto&... words) {
    if (!good) faults.push_back(absl::StrCat(words...));
  };
  require(run.world_size >= 1 && run.rank >= 0 && run.rank < run.world_size, "rank ", run.rank,
          " is not one of ", run.world_size, " ranks");
  require(run.world_size == 1 || (run.master_port > 0 && run.master_port < 65536),
          "master_port is ", run.master_port, ", a gang of ", run.world_size, " needs one");
  require(run.device == "cpu" || absl::StartsWith(run.device, "cuda:"), "device \"", run.device,
          "\": expected cpu or cuda:<index>");
  require(
      model.activations != Activations::kOffload || run.device != "cpu",
      "model.activation_memory OFFLOAD moves activations from a GPU to the host; on the CPU use "
      "LEAN or FULL_RECOMPUTE");
  require(run.threads >= 1, "threads is ", run.threads, ", must be at least 1");
  require(!run.job_dir.empty(), "job_dir is empty");
  require(!model.path.empty(), "model.path is empty");
  require(model.loss_chunk_tokens >= 0, "model.loss_chunk_tokens is ", model.loss_chunk_tokens);
  require(!model.aux_loss_coef.has_value() ||
              (std::isfinite(*model.aux_loss_coef) && *model.aux_loss_coef >= 0),
          "model.aux_loss_coef is ", model.aux_loss_coef.value_or(0), ", must be >= 0");
  require(model.aux_loss != Aux::kOff || model.aux_loss_coef.value_or(0) == 0,
          "model.aux_loss_coef is ", model.aux_loss_coef.value_or(0), " but aux_loss is off");
  require(!data.train_tokens.empty(), "train_tokens is empty");

  require(batch.local_batch_size >= 1, "batch.local_batch_size is ", batch.local_batch_size);
  require(batch.global_batch_size >= 1, "batch.global_batch_size is ", batch.global_batch_size);
  const int64_t at_once = batch.local_batch_size * std::max<int64_t>(run.world_size, 1);
  require(at_once < 1 || batch.global_batch_size % at_once == 0, "batch.global_batch_size ",
          batch.global_batch_size, " is not a multiple of local_batch_size ",
          batch.local_batch_size, " x ", run.world_size, " ranks");
  require(batch.max_steps >= 0, "batch.max_steps is ", batch.max_steps);
  require(batch.num_epochs >= 0, "batch.num_epochs is ", batch.num_epochs);
  require(batch.max_steps > 0 || batch.num_epochs > 0,
          "batch: neither max_steps nor num_epochs is set");
  require(batch.val_every_steps >= 0, "batch.val_every_steps is ", batch.val_every_steps);
  require(batch.val_every_steps == 0 || !data.validation_tokens.empty(),
          "batch.val_every_steps is ", batch.val_every_steps, " but there is no validation data");

  require(optimizer.beta1 >= 0 && optimizer.beta1 < 1, "optimizer.beta1 is ", optimizer.beta1,
          ", must be in [0, 1)");
  require(optimizer.beta2 >= 0 && optimizer.beta2 < 1, "optimizer.beta2 is ", optimizer.beta2,
          ", must be in [0, 1)");
  require(std::isfinite(optimizer.eps) && optimizer.eps > 0, "optimizer.eps is ", optimizer.eps,
          ", must be > 0");
  require(std::isfinite(optimizer.weight_decay) && optimizer.weight_decay >= 0,
          "optimizer.weight_decay is ", optimizer.weight_decay, ", must be >= 0");
  require(std::isfinite(optimizer.max_grad_norm) && optimizer.max_grad_norm >= 0,
          "optimizer.max_grad_norm is ", optimizer.max_grad_norm, ", must be >= 0");
  require(optimizer.max_nonfinite_steps >= 1, "optimizer.max_nonfinite_steps is ",
          optimizer.max_nonfinite_steps);

  require(parallel.ep_size >= 1, "parallel.ep_size is ", parallel.ep_size);
  require(parallel.dp_replicate_size >= 1, "parallel.dp_replicate_size is ",
          parallel.dp_replicate_size);
  require(parallel.collective_timeout > absl::ZeroDuration(), "parallel.collective_timeout is ",
          absl::FormatDuration(parallel.collective_timeout));

  require(checkpoint.every_steps >= 0, "checkpoint.every_steps is ", checkpoint.every_steps);
  require(checkpoint.max_shard_bytes >= 1, "checkpoint.max_shard_bytes is ",
          checkpoint.max_shard_bytes);
  return faults;
}

absl::StatusOr<int64_t> TotalSteps(const TrainConfig::Batch& batch, int64_t steps_per_epoch) {
  const int64_t by_epochs = batch.num_epochs * steps_per_epoch;
  if (batch.max_steps == 0 && by_epochs == 0) {
    return absl::InvalidArgumentError("batch: neither max_steps nor num_epochs is set");
  }
  if (batch.max_steps == 0) return by_epochs;
  if (by_epochs == 0) return batch.max_steps;
  return std::min(batch.max_steps, by_epochs);
}

absl::StatusOr<LrSchedule> ResolveLrSchedule(const LrSchedule& schedule, int64_t total_steps) {
  LrSchedule resolved = schedule;
  if (resolved.decay_steps == 0) resolved.decay_steps = total_steps;
  const std::vector<std::string> faults = ValidateLrSchedule(resolved);
  if (!faults.empty()) return absl::InvalidArgumentError(absl::StrJoin(faults, "; "));
  return resolved;
}

}  // namespace switchyard
