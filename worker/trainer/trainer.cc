#include "worker/trainer/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/version.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "worker/trainer/batch_feeder.h"
#include "worker/trainer/checkpoint_saver.h"
#include "worker/trainer/data/loader.h"
#include "worker/trainer/data/token_file.h"
#include "worker/trainer/device.h"
#include "worker/trainer/failure.h"
#include "worker/trainer/model_state.h"
#include "worker/trainer/models/decoder.h"
#include "worker/trainer/models/flops.h"
#include "worker/trainer/models/memory_plan.h"
#include "worker/trainer/optim/grad_clip.h"
#include "worker/trainer/optim/nonfinite_guard.h"
#include "worker/trainer/parallel/dispatcher_choice.h"
#include "worker/trainer/stats.h"
#include "worker/trainer/step_sums.h"

namespace switchyard {
namespace {

struct TokenSource {
  std::string name;
  std::unique_ptr<TokenFile> file;
  std::unique_ptr<Loader> loader;
};

// A step that is queued on the device and whose numbers have not been read.
struct QueuedStep {
  int64_t step = 0;
  double loss_scale = 1;
  int64_t supervised = 0;  // of the global batch
  double lr = 0;
  StepSums sums;
  HostCopy sums_on_host;
  UpdateControl control;
  std::optional<HostCopy> control_on_host;  // CUDA
  StepTimer timer;
};

DecoderOptions ModelOptions(const TrainConfig::Model& config, double aux_coefficient,
                            bool deterministic) {
  DecoderOptions options;
  options.deterministic = deterministic;
  if (aux_coefficient != 0) {
    options.aux_loss =
        config.aux_loss == TrainConfig::Aux::kMegatron ? AuxLoss::kMegatron : AuxLoss::kHf;
  }
  switch (config.activations) {
    case TrainConfig::Activations::kLean:
      options.activation_memory = ActivationMemory::kLean;
      break;
    case TrainConfig::Activations::kFullRecompute:
      options.activation_memory = ActivationMemory::kFullRecompute;
      break;
    case TrainConfig::Activations::kOffload:
      options.activation_memory = ActivationMemory::kOffload;
      break;
  }
  options.router_fp32 = config.router_fp32;
  options.loss_chunk_tokens = config.loss_chunk_tokens;
  return options;
}

constexpr int64_t kMemoryLogStep = 3;  // the allocator's caches have settled

// Of dense bf16 matrix products: H100 and H200 SXM. 0: no figure.
double PeakFlops(at::Device device) { return device.is_cuda() ? 989.4e12 : 0; }

double AuxCoefficient(const TrainConfig::Model& config, const ModelConfig& model) {
  if (config.aux_loss == TrainConfig::Aux::kOff || model.NumMoeLayers() == 0) return 0;
  if (config.aux_loss_coef.has_value()) return *config.aux_loss_coef;
  return model.output_router_logits ? model.router_aux_loss_coef : 0;
}

class Session {
 public:
  Session(const TrainConfig& config, const TrainerEnvironment& environment)
      : config_(config), env_(environment), device_(OpenDevice(config.run.device)) {}

  TrainResult Run();
  // Lets peers that wait for this rank's token rows end at once.
  void GiveUp() noexcept {
    if (dispatcher_ != nullptr) dispatcher_->GiveUp();
  }
  // What did not fit, what was planned, and what to change.
  std::string DescribeOutOfMemory(const c10::Error& error) const;

 private:
  bool IsRankZero() const { return config_.run.rank == 0; }
  Comm& World() { return (*comms_)[Axis::kWorld]; }
  void Report(RankFrame frame) { env_.report(frame); }
  void ReportFromRankZero(RankFrame frame) {
    if (IsRankZero()) env_.report(frame);
  }
  void EnterPhase(const char* name, std::string message = "") {
    Report(PhaseFrame{name, std::move(message)});
  }

  void Load();
  TokenSource OpenTokens(const std::string& name, const std::string& path, bool training);
  void CheckResumable(const TrainState& state, const std::string& folder);
  void ReportPlan();
  // Queues a step, its update included, on the device.
  void TrainStep(int64_t step);
  // Reads and reports the numbers of the step queued last, if that has not happened. On a GPU this
  // is done while the next step computes, so that the device never waits for the host.
  void FinishStep();
  void ReportStep(const QueuedStep& queued, const StepNumbers& numbers, double grad_norm,
                  bool skipped);
  void LogMemory() const;
  void Validate(int64_t steps_done);
  // What a checkpoint of the steps done says besides tensors; their numbers are known.
  std::pair<Manifest, TrainState> DescribeCheckpoint(bool final) const;
  // A checkpoint on the way is begun when its step is queued and finished when that step's numbers
  // are known.
  void BeginCheckpoint();
  void FinishCheckpoint();
  void SaveNow(bool final);
  bool SavesOnTheWay() const;

  const TrainConfig& config_;
  const TrainerEnvironment& env_;
  const at::Device device_;
  ModelConfig model_;
  Mesh mesh_;
  std::optional<Comms> comms_;
  TokenSource train_;
  std::vector<TokenSource> validation_;
  int64_t total_steps_ = 0;
  LrSchedule schedule_;
  double aux_coefficient_ = 0;
  MemoryPlan plan_;
  std::optional<ModelState> state_;
  std::unique_ptr<TokenDispatcher> dispatcher_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<BatchFeeder> feeder_;
  std::unique_ptr<CheckpointSaver> saver_;

  int64_t loaded_step_ = 0;  // of the checkpoint that training began from
  int64_t steps_done_ = 0;   // queued
  std::optional<QueuedStep> queued_;
  int64_t tokens_seen_ = 0;
  NonfiniteGuard guard_{3};
  int64_t reported_repeats_ = 0;  // of forwards
  double last_loss_ = std::nan("");
  std::optional<double> last_validation_loss_;
  std::map<std::string, double> carried_seconds_;  // between steps; reported with the next one
};

TokenSource Session::OpenTokens(const std::string& name, const std::string& path, bool training) {
  return Blame(FailureReason::kDataInvalid, [&] {
    TokenSource source;
    source.name = name;
    source.file = OrThrow(TokenFile::Open(path, /*verify=*/true));
    if (source.file->vocab_size() > model_.vocab_size) {
      throw TrainError(FailureReason::kDataInvalid,
                       absl::StrCat(path, ": holds token id ", source.file->vocab_size() - 1,
                                    ", the model's vocabulary has ", model_.vocab_size));
    }
    LoaderOptions options;
    options.seed = config_.run.seed;
    options.local_batch_size = config_.batch.local_batch_size;
    options.global_batch_size = training ? config_.batch.global_batch_size
                                         : config_.batch.local_batch_size * config_.run.world_size;
    options.dp_rank = config_.run.rank;
    options.dp_size = config_.run.world_size;
    options.shuffle = training && config_.data.shuffle;
    source.loader = std::make_unique<Loader>(OrThrow(Loader::Make(source.file.get(), options)));
    return source;
  });
}

void Session::CheckResumable(const TrainState& state, const std::string& folder) {
  const auto refuse = [&](const char* what, const auto& theirs, const auto& ours) {
    throw TrainError(
        FailureReason::kCheckpointInvalid,
        absl::StrCat("resume from ", folder, ": ", what, " was ", theirs, ", the job has ", ours));
  };
  if (state.dataset_fingerprint != train_.file->fingerprint()) {
    refuse("the dataset's fingerprint", state.dataset_fingerprint, train_.file->fingerprint());
  }
  if (state.seed != config_.run.seed) refuse("the seed", state.seed, config_.run.seed);
  if (state.global_batch_size != config_.batch.global_batch_size) {
    refuse("global_batch_size", state.global_batch_size, config_.batch.global_batch_size);
  }
  if (state.step > total_steps_)
    refuse("the step", state.step, absl::StrCat(total_steps_, " steps"));
}

void Session::Load() {
  EnterPhase("loading", config_.model.path);
  Blame(FailureReason::kConfigInvalid, [&] {
    model_ = OrThrow(ReadModelConfig(config_.model.path));
    mesh_ = OrThrow(MakeMesh(static_cast<int>(config_.run.world_size),
                             static_cast<int>(config_.run.rank),
                             static_cast<int>(config_.parallel.dp_replicate_size),
                             static_cast<int>(config_.parallel.ep_size), model_.num_experts));
  });
  train_ = OpenTokens("train", config_.data.train_tokens, /*training=*/true);
  for (const TokensFile& tokens : config_.data.validation_tokens) {
    validation_.push_back(OpenTokens(tokens.name, tokens.path, /*training=*/false));
  }
  Blame(FailureReason::kConfigInvalid, [&] {
    total_steps_ = OrThrow(TotalSteps(config_.batch, train_.loader->steps_per_epoch()));
    schedule_ = OrThrow(ResolveLrSchedule(config_.lr_schedule, total_steps_));
  });
  aux_coefficient_ = AuxCoefficient(config_.model, model_);

  comms_.emplace(env_.make_comms(mesh_));
  ReportPlan();
  state_.emplace(config_, model_, mesh_, *comms_, device_);
  const std::string checkpoint =
      !config_.run.resume_from.empty() ? config_.run.resume_from : config_.checkpoint.restore_from;
  guard_ = NonfiniteGuard(config_.optimizer.max_nonfinite_steps);
  PhaseTimer loading(*env_.clock);
  const std::optional<TrainState> loaded = state_->Load(checkpoint);
  FlushDevice(device_);
  loading.Lap("loading");
  const int64_t bytes = state_->bytes();
  SY_LOG(INFO) << "loaded state_bytes=" << bytes << " seconds=" << loading.total_seconds()
               << " GB/s=" << static_cast<double>(bytes) / 1e9 / loading.total_seconds()
               << " peak_host_bytes=" << PeakHostMemoryBytes();
  if (loaded.has_value()) {
    CheckResumable(*loaded, checkpoint);
    loaded_step_ = loaded->step;
    steps_done_ = loaded->step;
    tokens_seen_ = loaded->tokens_seen;
    guard_ = NonfiniteGuard(config_.optimizer.max_nonfinite_steps, loaded->nonfinite_in_a_row,
                            loaded->skipped_total);
  }
  DispatcherNeeds needs;
  needs.device = device_;
  needs.dtype = config_.model.dtype == TrainDtype::kFloat32 ? at::kFloat : at::kBFloat16;
  needs.num_experts = model_.num_experts;
  needs.top_k = model_.top_k;
  needs.hidden = model_.hidden_size;
  int64_t row_length = train_.file->row_length();
  for (const TokenSource& source : validation_) {
    row_length = std::max(row_length, source.file->row_length());
  }
  needs.max_tokens = config_.batch.local_batch_size * row_length;
  needs.timeout = config_.parallel.collective_timeout;
  DispatcherChoice choice = ChooseDispatcher((*comms_)[Axis::kEp], mesh_, needs);
  SY_LOG(INFO) << "dispatcher kind=" << choice.kind << " reason=\"" << choice.reason << "\"";
  dispatcher_ = std::move(choice.dispatcher);
  decoder_ = std::make_unique<Decoder>(
      model_, ModelOptions(config_.model, aux_coefficient_, config_.run.deterministic),
      state_->store(), *dispatcher_);
}

void Session::ReportPlan() {
  MemoryPlanInput input;
  input.world_size = config_.run.world_size;
  input.ep_size = config_.parallel.ep_size;
  input.dp_replicate_size = config_.parallel.dp_replicate_size;
  input.microbatch_tokens = config_.batch.local_batch_size * train_.file->row_length();
  input.microbatches = train_.loader->microbatches_per_step();
  input.weight_bytes = config_.model.dtype == TrainDtype::kFloat32 ? 4 : 2;
  input.moment_bytes = config_.optimizer.moment_dtype == TrainDtype::kFloat32 ? 4 : 2;
  input.gradient_bytes = config_.optimizer.gradient_dtype == TrainDtype::kFloat32 ? 4 : 2;
  input.exact_master = config_.optimizer.exact_master;
  input.full_recompute = config_.model.activations != TrainConfig::Activations::kLean;
  input.offload = config_.model.activations == TrainConfig::Activations::kOffload;
  input.on_gpu = device_.is_cuda();
  input.reshard_after_forward = config_.parallel.reshard_after_forward;
  input.loss_chunk_tokens = config_.model.loss_chunk_tokens;
  plan_ = PlanMemory(model_, input);
  ReportFromRankZero(PlanFrame{plan_.weights, plan_.gradients, plan_.optimizer, plan_.activations,
                               plan_.buffers, plan_.total()});
}

void Session::TrainStep(int64_t step) {
  StepTimer timer(*env_.clock, device_);
  Loader& loader = *train_.loader;
  ShardedParameterStore& store = state_->store();
  const int64_t supervised = loader.SupervisedInStep(step);
  // A step without any target has no loss; its denominator must not matter.
  const double loss_scale = 1.0 / static_cast<double>(std::max<int64_t>(supervised, 1));
  const int64_t global_rows = config_.batch.global_batch_size;
  const int64_t rows = std::min(
      global_rows, train_.file->num_rows() - step % loader.steps_per_epoch() * global_rows);
  const int64_t local_rows = config_.batch.local_batch_size;
  const int64_t filled_microbatches = (rows + local_rows - 1) / local_rows;
  const double aux_scale = aux_coefficient_ / static_cast<double>(filled_microbatches);

  StepSums sums;
  const int64_t microbatches = loader.microbatches_per_step();
  for (int64_t m = 0; m < microbatches; ++m) {
    const DecoderBatch batch = feeder_->Next(step, m);
    timer.Lap("data");
    store.BeginMicrobatch(m == 0, m + 1 == microbatches);
    sums.Add(decoder_->ForwardBackward(batch, loss_scale, aux_scale));
    timer.Lap("forward_backward");
  }
  store.FinishGradients();
  const at::Tensor reduced = sums.Reduce(World());
  const UpdateControl control = ControlUpdate(store, *comms_, reduced[0] * loss_scale + reduced[1],
                                              config_.optimizer.max_grad_norm);
  timer.Lap("reduce");

  // Skipped steps are not updates: Adam's bias correction counts those made. So the step before
  // must be known now.
  FinishStep();
  const double lr = LearningRate(schedule_, step);
  saver_->BeforeUpdate();
  state_->adam().Step(step + 1 - guard_.total(), lr, control);
  store.WeightsChanged();
  timer.Lap("optimizer");

  queued_.emplace(QueuedStep{step, loss_scale, supervised, lr, sums, HostCopy(reduced), control,
                             std::nullopt, std::move(timer)});
  if (control.device.defined()) queued_->control_on_host.emplace(control.device);
  steps_done_ = step + 1;
  tokens_seen_ += loader.TokensInStep(step);
  if (device_.is_cpu()) FinishStep();
}

void Session::FinishStep() {
  if (!queued_.has_value()) return;
  const QueuedStep queued = *std::exchange(queued_, std::nullopt);
  const StepNumbers numbers = queued.sums.Unpack(queued.sums_on_host.Wait());
  const UpdateControl control = queued.control_on_host.has_value()
                                    ? UpdateControl::Decode(queued.control_on_host->Wait())
                                    : queued.control;
  dispatcher_->CheckHealth();
  TORCH_CHECK(numbers.supervised == queued.supervised, "bug: step ", queued.step,
              ": the ranks saw ", numbers.supervised, " supervised tokens, the global batch has ",
              queued.supervised);
  const double loss = numbers.ce * queued.loss_scale;
  const bool update = guard_.Allow(loss + numbers.aux, control.norm);
  TORCH_CHECK(update == control.apply, "bug: step ", queued.step, ": loss ", loss, ", norm ",
              control.norm, ", update ", control.apply);
  env_.control->steps_done.store(queued.step + 1);
  last_loss_ = loss;
  ReportStep(queued, numbers, control.norm, !update);
  if (guard_.Exhausted()) {
    throw TrainError(
        FailureReason::kNanLoss,
        absl::StrCat("step ", queued.step + 1, ": loss ", loss, ", gradient norm ", control.norm,
                     ": not finite ", guard_.in_a_row(), " times in a row"));
  }
  FinishCheckpoint();
}

void Session::ReportStep(const QueuedStep& queued, const StepNumbers& numbers, double grad_norm,
                         bool skipped) {
  const int64_t step = queued.step;
  const StepTimer::Times times = queued.timer.Read();
  at::Tensor memory = at::tensor({ReadDeviceMemory(device_).peak_bytes}, at::kLong);
  World().AllReduceMax(memory);
  StepFrame frame;
  frame.step = step + 1;
  frame.total_steps = total_steps_;
  frame.epoch =
      static_cast<double>(step + 1) / static_cast<double>(train_.loader->steps_per_epoch());
  frame.loss = last_loss_;
  frame.aux_loss = numbers.aux;  // weighted: loss + aux_loss is what is minimised
  frame.grad_norm = grad_norm;
  frame.learning_rate = queued.lr;
  frame.tokens = train_.loader->TokensInStep(step);
  frame.supervised_tokens = numbers.supervised;
  frame.step_seconds = times.total;
  if (frame.step_seconds > 0) {
    frame.tokens_per_second = static_cast<double>(frame.tokens) / frame.step_seconds;
    frame.supervised_tokens_per_second =
        static_cast<double>(frame.supervised_tokens) / frame.step_seconds;
    const double flops =
        3 * ForwardFlops(model_, frame.tokens, train_.loader->CausalPairsInStep(step));
    if (const double peak = PeakFlops(device_); peak > 0) {
      frame.mfu = flops / (frame.step_seconds * peak * static_cast<double>(config_.run.world_size));
    }
  }
  frame.memory_bytes = memory.item<int64_t>();
  frame.expert_load_max_over_mean = ExpertLoadMaxOverMean(numbers.copies_LE);
  frame.skipped = skipped;
  frame.skipped_total = guard_.total();
  frame.checkpoint_failures = saver_->failures();
  frame.phase_seconds = times.seconds;
  frame.phase_seconds.merge(carried_seconds_);
  if (const double stall = saver_->TakeStallSeconds(); stall > 0) {
    frame.phase_seconds["checkpoint"] = stall;
  }
  carried_seconds_.clear();
  ReportFromRankZero(frame);
  if (const int64_t repeats = dispatcher_->num_repeats(); repeats > reported_repeats_) {
    ReportFromRankZero(WarningFrame{absl::StrCat(
        "step ", step + 1, ": the routing needed more rows on one rank than were planned for; ",
        repeats - reported_repeats_, " forwards were run again with larger buffers")});
    reported_repeats_ = repeats;
  }
  if (step + 1 == kMemoryLogStep || step + 1 == total_steps_) LogMemory();
}

void Session::LogMemory() const {
  if (device_.is_cpu()) return;
  const DeviceMemory memory = ReadDeviceMemory(device_);
  SY_LOG(INFO) << "device memory planned=" << plan_.total() << " peak=" << memory.peak_bytes
               << " reserved=" << memory.reserved_bytes << " peak/planned="
               << static_cast<double>(memory.peak_bytes) / static_cast<double>(plan_.total());
}

std::string Session::DescribeOutOfMemory(const c10::Error& error) const {
  const std::string what = error.what_without_backtrace();
  const DeviceMemory memory = ReadDeviceMemory(device_);
  return absl::StrCat(
      what.substr(0, what.find('\n')), "; planned ", plan_.total(), " bytes (weights ",
      plan_.weights, ", gradients ", plan_.gradients, ", optimizer ", plan_.optimizer,
      ", activations ", plan_.activations, ", buffers ", plan_.buffers, ", of which ",
      plan_.overlap, " are never there together with the rest), peak ", memory.peak_bytes,
      ". A smaller batch.local_batch_size or pack_length, "
      "activation checkpointing, bfloat16 moments and gradients, or more ranks need less");
}

void Session::Validate(int64_t steps_done) {
  if (validation_.empty()) return;
  FinishStep();
  EnterPhase("validating");
  PhaseTimer timer(*env_.clock);
  last_validation_loss_.reset();
  for (TokenSource& source : validation_) {
    StepSums sums;
    for (int64_t step = 0; step < source.loader->steps_per_epoch(); ++step) {
      sums.Add(decoder_->Evaluate(ToTensors(source.loader->Get(step, 0))));
    }
    const StepNumbers numbers = sums.Unpack(HostCopy(sums.Reduce(World())).Wait());
    dispatcher_->CheckHealth();
    const double loss = numbers.ce / static_cast<double>(std::max<int64_t>(numbers.supervised, 1));
    if (!last_validation_loss_.has_value()) last_validation_loss_ = loss;
    ReportFromRankZero(ValidationFrame{steps_done, source.name, loss, numbers.supervised});
  }
  timer.Lap("validation");
  carried_seconds_["validation"] += timer.total_seconds();
  EnterPhase("training");
}

std::pair<Manifest, TrainState> Session::DescribeCheckpoint(bool final) const {
  Manifest manifest;
  manifest.step = steps_done_;
  manifest.final = final;
  manifest.loss = last_loss_;
  manifest.validation_loss = last_validation_loss_;
  TrainState state;
  state.step = steps_done_;
  state.seed = config_.run.seed;
  state.dataset_fingerprint = train_.file->fingerprint();
  state.global_batch_size = config_.batch.global_batch_size;
  state.tokens_seen = tokens_seen_;
  state.skipped_total = guard_.total();
  state.nonfinite_in_a_row = guard_.in_a_row();
  state.lr_schedule = config_.lr_schedule_spec;
  state.torch_version = TORCH_VERSION;
  return {std::move(manifest), std::move(state)};
}

void Session::BeginCheckpoint() {
  saver_->Begin();
  if (!queued_.has_value()) FinishCheckpoint();
}

void Session::FinishCheckpoint() {
  if (!saver_->begun()) return;
  auto [manifest, state] = DescribeCheckpoint(/*final=*/false);
  saver_->Finish(std::move(manifest), std::move(state));
}

void Session::SaveNow(bool final) {
  FinishStep();
  auto [manifest, state] = DescribeCheckpoint(final);
  saver_->SaveNow(std::move(manifest), std::move(state));
}

bool Session::SavesOnTheWay() const {
  const TrainConfig::Checkpoint& checkpoint = config_.checkpoint;
  const int64_t every_epoch = checkpoint.every_epoch ? train_.loader->steps_per_epoch() : 0;
  return (checkpoint.every_steps > 0 && checkpoint.every_steps < total_steps_) ||
         (every_epoch > 0 && every_epoch < total_steps_);
}

TrainResult Session::Run() {
  Load();
  EnterPhase("training");
  saver_ = std::make_unique<CheckpointSaver>(config_, env_, state_->plan(), state_->Shards(),
                                             *comms_, SavesOnTheWay());
  feeder_ = std::make_unique<BatchFeeder>(*train_.loader, steps_done_, total_steps_);
  ResetPeakDeviceMemory(device_);
  const TrainConfig::Batch& batch = config_.batch;
  const TrainConfig::Checkpoint& checkpoint = config_.checkpoint;
  const int64_t steps_per_epoch = train_.loader->steps_per_epoch();
  const auto every = [](int64_t period, int64_t done) { return period > 0 && done % period == 0; };
  while (steps_done_ < total_steps_) {
    const StopRequest stop = AgreeOnStop(World(), env_.control->stop());
    if (stop.stop) {
      FinishStep();
      if (stop.checkpoint) {
        saver_->Drain();
        if (steps_done_ > std::max(saver_->last_step(), loaded_step_)) SaveNow(/*final=*/false);
      }
      saver_->AwaitLastCommit();
      return {steps_done_, true};
    }
    saver_->Poll();
    TrainStep(steps_done_);
    const bool last = steps_done_ == total_steps_;
    if (last || every(batch.val_every_steps, steps_done_)) Validate(steps_done_);
    if (!last && (every(checkpoint.every_steps, steps_done_) ||
                  (checkpoint.every_epoch && every(steps_per_epoch, steps_done_)))) {
      BeginCheckpoint();
    }
  }
  SaveNow(/*final=*/true);  // also when there was nothing left to train
  saver_->AwaitLastCommit();
  return {steps_done_, false};
}

}  // namespace

TrainResult Train(const TrainConfig& config, const TrainerEnvironment& environment) {
  at::set_num_threads(static_cast<int>(config.run.threads));
  const c10::NoGradGuard no_grad;  // no autograd on the training path
  Session session(config, environment);
  TrainResult result;
  try {
    result = session.Run();
  } catch (const c10::OutOfMemoryError& e) {
    session.GiveUp();
    throw TrainError(FailureReason::kOomGpu, session.DescribeOutOfMemory(e));
  } catch (...) {
    session.GiveUp();
    throw;
  }
  environment.report(DoneFrame{result.step, result.stopped});
  return result;
}

}  // namespace switchyard
