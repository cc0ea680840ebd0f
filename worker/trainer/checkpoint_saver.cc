#include "worker/trainer/checkpoint_saver.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/log.h"
#include "worker/trainer/checkpoint/gang_io.h"
#include "worker/trainer/checkpoint/writer.h"
#include "worker/trainer/failure.h"
#include "worker/trainer/stats.h"

namespace switchyard {
namespace {

constexpr int64_t kMaxGpuThreads = 8;      // of one rank's writer
constexpr double kSnapshotPortion = 0.75;  // of available memory that snapshots may take

bool OnGpu(const std::vector<BucketShard>& shards) {
  return !shards.empty() && shards[0].weights.is_cuda();
}

// One number for all processes of this machine.
int64_t HostId() {
  return static_cast<int64_t>(
      Crc32c(ReadFile("/proc/sys/kernel/random/boot_id").value_or("no boot id")));
}

}  // namespace

CheckpointSaver::CheckpointSaver(const TrainConfig& config, const TrainerEnvironment& environment,
                                 const CheckpointPlan& plan, std::vector<BucketShard> shards,
                                 const Comms& comms, bool periodic)
    : config_(config),
      env_(environment),
      plan_(plan),
      shards_(std::move(shards)),
      world_(comms[Axis::kWorld]),
      gang_(comms.background()) {
  if (periodic) {
    snapshot_.emplace(shards_, /*with_optimizer=*/!plan_.optimizer.layouts.empty());
    if (!HasRoomForSnapshots(gang_)) snapshot_.reset();
  }
  {
    absl::MutexLock lock(&mu_);
    busy_ = snapshot_.has_value();
  }
  writer_ = Thread("checkpoint", [this](const StopToken&) { WriteJobs(); });
}

CheckpointSaver::~CheckpointSaver() {
  cancelled_.store(true);
  absl::MutexLock lock(&mu_);
  stopping_ = true;
}

bool CheckpointSaver::HasRoomForSnapshots(Comm& gang) const {
  const int64_t host = HostId();
  const std::vector<int64_t> numbers = GatherNumbers(gang, {host, snapshot_->bytes()});
  int64_t needed = 0;
  for (size_t i = 0; i < numbers.size(); i += 2) {
    if (numbers[i] == host) needed += numbers[i + 1];
  }
  const int64_t available = AvailableHostMemoryBytes();
  const bool fits =
      static_cast<double>(needed) <= kSnapshotPortion * static_cast<double>(available);
  SY_LOG(INFO) << "checkpoints are written "
               << (fits ? "in the background" : "while training waits")
               << " snapshot_bytes=" << snapshot_->bytes() << " host_needs=" << needed
               << " host_available=" << available;
  return fits;
}

void CheckpointSaver::Begin() {
  TORCH_CHECK(!begun_, "bug: checkpoint saver: Begin without Finish");
  AwaitWriter();
  const absl::Duration start = env_.clock->Monotonic();
  {
    absl::MutexLock lock(&mu_);
    snapshot_taken_ = has_snapshot_;
  }
  if (snapshot_taken_) snapshot_->Take();
  stall_seconds_ += absl::ToDoubleSeconds(env_.clock->Monotonic() - start);
  begun_ = true;
}

void CheckpointSaver::Finish(Manifest manifest, TrainState state) {
  TORCH_CHECK(begun_, "bug: checkpoint saver: Finish without Begin");
  begun_ = false;
  Post(std::move(manifest), std::move(state), snapshot_taken_);
  if (!snapshot_taken_) AwaitWriter();
}

void CheckpointSaver::BeforeUpdate() {
  if (snapshot_.has_value()) snapshot_->BeforeUpdate();
}

void CheckpointSaver::SaveNow(Manifest manifest, TrainState state) {
  const bool final = manifest.final;
  AwaitWriter();
  Post(std::move(manifest), std::move(state), /*from_snapshot=*/false);
  const absl::Duration start = env_.clock->Monotonic();
  env_.report(PhaseFrame{"saving", ""});
  {
    absl::MutexLock lock(&mu_);
    const auto idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !busy_; };
    mu_.Await(absl::Condition(&idle));
  }
  stall_seconds_ += absl::ToDoubleSeconds(env_.clock->Monotonic() - start);
  const std::optional<Outcome> outcome = TakeOutcome();
  const absl::Status status = Handle(*outcome);
  env_.report(PhaseFrame{"training", ""});
  if (final && !status.ok()) {
    throw TrainError(ReasonOf(status, FailureReason::kStorageIo), std::string(status.message()));
  }
}

void CheckpointSaver::Post(Manifest manifest, TrainState state, bool from_snapshot) {
  manifest.job = config_.run.job_name;
  manifest.job_uid = config_.run.job_uid;
  manifest.attempt = config_.run.attempt;
  manifest.world_size = config_.run.world_size;
  manifest.ep_size = config_.parallel.ep_size;
  Job job;
  job.folder =
      absl::StrCat(config_.run.job_dir, "/staging/", config_.run.attempt, "/step-", manifest.step);
  job.manifest = std::move(manifest);
  job.state = std::move(state);
  job.from_snapshot = from_snapshot;
  absl::MutexLock lock(&mu_);
  busy_ = true;
  job_ = std::move(job);
}

void CheckpointSaver::AwaitWriter() {
  const absl::Duration start = env_.clock->Monotonic();
  {
    absl::MutexLock lock(&mu_);
    if (busy_) ++waits_;
    const auto idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !busy_; };
    // Short waits are not worth an event; in a long one the agent should not take it for a hang.
    if (!mu_.AwaitWithTimeout(absl::Condition(&idle), absl::Milliseconds(100))) {
      mu_.Unlock();
      env_.report(PhaseFrame{"saving", ""});
      mu_.LockWhen(absl::Condition(&idle));
      mu_.Unlock();
      env_.report(PhaseFrame{"training", ""});
      mu_.Lock();
    }
  }
  stall_seconds_ += absl::ToDoubleSeconds(env_.clock->Monotonic() - start);
  if (const std::optional<Outcome> outcome = TakeOutcome(); outcome.has_value()) {
    Handle(*outcome).IgnoreError();
  }
}

std::optional<CheckpointSaver::Outcome> CheckpointSaver::TakeOutcome() {
  absl::MutexLock lock(&mu_);
  return std::exchange(outcome_, std::nullopt);
}

absl::Status CheckpointSaver::Handle(const Outcome& outcome) {
  const Manifest& manifest = outcome.job.manifest;
  if (!outcome.status.ok()) {
    ++failures_;
    SY_LOG(WARNING) << "checkpoint failed step=" << manifest.step << ": " << outcome.status;
    // The rank that it happened to says why; one word of it is enough.
    if (!absl::IsAborted(outcome.status)) {
      env_.report(WarningFrame{absl::StrCat("the checkpoint of step ", manifest.step,
                                            " was not written: ", outcome.status.message())});
    }
    return outcome.status;
  }
  SY_LOG(INFO) << "saved step=" << manifest.step << " seconds=" << outcome.seconds
               << " in_background=" << outcome.job.from_snapshot << " waits=" << waits_;
  last_step_ = manifest.step;
  uncommitted_.push_back(manifest.step);
  if (IsRankZero()) {
    env_.report(CheckpointFrame{manifest.step, outcome.job.folder, outcome.manifest_crc32c,
                                manifest.final, manifest.loss.value_or(0),
                                manifest.validation_loss});
  }
  return absl::OkStatus();
}

void CheckpointSaver::Poll() {
  if (const std::optional<Outcome> outcome = TakeOutcome(); outcome.has_value()) {
    Handle(*outcome).IgnoreError();
  }
  if (!IsRankZero()) return;
  std::vector<int64_t> waiting;
  for (int64_t step : uncommitted_) {
    const auto result = env_.control->TakeCheckpointResult(step, absl::ZeroDuration());
    if (!result.has_value()) {
      waiting.push_back(step);
    } else if (!result->ok) {
      env_.report(WarningFrame{
          absl::StrCat("checkpoint of step ", step, " was not committed: ", result->error)});
    }
  }
  uncommitted_ = std::move(waiting);
}

void CheckpointSaver::Drain() {
  AwaitWriter();
  Poll();
}

double CheckpointSaver::TakeStallSeconds() { return std::exchange(stall_seconds_, 0); }

void CheckpointSaver::WriteJobs() {
  const c10::NoGradGuard no_grad;
  if (OnGpu(shards_)) {
    const at::Device device = shards_[0].weights.device();
    c10::impl::VirtualGuardImpl(device.type()).setDevice(device);
  }
  if (snapshot_.has_value()) {
    const absl::Status reserved = snapshot_->Reserve();
    if (!reserved.ok()) SY_LOG(WARNING) << "no memory for snapshots: " << reserved;
    absl::MutexLock lock(&mu_);
    has_snapshot_ = reserved.ok();
    busy_ = job_.has_value();
  }
  while (true) {
    std::optional<Job> job;
    {
      absl::MutexLock lock(&mu_);
      const auto wanted = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
        return stopping_ || job_.has_value();
      };
      mu_.Await(absl::Condition(&wanted));
      if (stopping_) return;
      job = std::exchange(job_, std::nullopt);
    }
    Outcome outcome = Write(*std::move(job));
    absl::MutexLock lock(&mu_);
    outcome_ = std::move(outcome);
    busy_ = false;
  }
}

CheckpointSaver::Outcome CheckpointSaver::Write(Job job) {
  Outcome outcome;
  const absl::Duration start = env_.clock->Monotonic();
  SaveOptions options;
  // On the CPU the cores belong to training.
  if (OnGpu(shards_)) {
    options.threads = static_cast<int>(std::clamp<int64_t>(config_.run.threads, 1, kMaxGpuThreads));
  }
  options.cancelled = &cancelled_;
  try {
    const std::vector<BucketShard>& shards = job.from_snapshot ? snapshot_->Wait() : shards_;
    outcome.manifest_crc32c = SaveCheckpoint(
        {job.folder, config_.model.path, job.manifest, job.state}, plan_, shards, gang_, options);
  } catch (const StatusError& e) {
    outcome.status = e.status();
  } catch (const std::exception& e) {
    const ErrorFrame error = DescribeFailure(e);
    outcome.status = absl::InternalError(absl::StrCat(Name(error.reason), ": ", error.message));
  }
  outcome.seconds = absl::ToDoubleSeconds(env_.clock->Monotonic() - start);
  outcome.job = std::move(job);
  return outcome;
}

void CheckpointSaver::AwaitLastCommit() {
  if (env_.commit_timeout == absl::ZeroDuration() || uncommitted_.empty()) return;
  enum Outcome : int64_t { kWaiting = 0, kDone = 1, kRefused = 2 };
  const int64_t step = uncommitted_.back();
  const absl::Duration slice = std::min(config_.parallel.collective_timeout / 4, absl::Seconds(2));
  const absl::Duration deadline = env_.clock->Monotonic() + env_.commit_timeout;
  std::string fault;
  int64_t outcome = kWaiting;
  while (outcome == kWaiting) {
    if (IsRankZero()) {
      const auto result = env_.control->TakeCheckpointResult(step, slice);
      const StopRequest stop = env_.control->stop();
      if (result.has_value()) {
        outcome = result->ok ? kDone : kRefused;
        fault = result->error;
      } else if (env_.clock->Monotonic() >= deadline || (stop.stop && !stop.checkpoint)) {
        // The checkpoint is complete and its frame is sent: the service commits it when it is back.
        SY_LOG(WARNING) << "no answer about the last checkpoint step=" << step;
        outcome = kDone;
      }
    }
    at::Tensor agreed = at::tensor({outcome}, at::kLong);
    world_.AllReduceMax(agreed);
    outcome = agreed.item<int64_t>();
  }
  if (outcome == kRefused) {
    throw TrainError(FailureReason::kStorageIo,
                     absl::StrCat("checkpoint of step ", step, " was not committed",
                                  IsRankZero() ? ": " : " (rank 0 knows why)", fault));
  }
}

}  // namespace switchyard
