#include "worker/trainer/checkpoint_saver.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "worker/trainer/failure.h"
#include "worker/trainer/stats.h"

namespace switchyard {

CheckpointSaver::CheckpointSaver(const TrainConfig& config, const TrainerEnvironment& environment,
                                 ModelState& model, Comm& world)
    : config_(config), env_(environment), model_(model), world_(world) {}

double CheckpointSaver::Save(Manifest manifest, const TrainState& state) {
  env_.report(PhaseFrame{"saving", ""});
  PhaseTimer timer(*env_.clock);
  manifest.job = config_.run.job_name;
  manifest.job_uid = config_.run.job_uid;
  manifest.attempt = config_.run.attempt;
  manifest.world_size = config_.run.world_size;
  manifest.ep_size = config_.parallel.ep_size;
  const int64_t step = manifest.step;
  const std::string folder =
      absl::StrCat(config_.run.job_dir, "/staging/", config_.run.attempt, "/step-", step);
  const uint32_t crc32c = model_.Save(folder, manifest, state);
  last_step_ = step;
  uncommitted_.push_back(step);
  if (IsRankZero()) {
    env_.report(CheckpointFrame{step, folder, crc32c, manifest.final, manifest.loss.value_or(0),
                                manifest.validation_loss});
  }
  timer.Lap("checkpoint");
  SY_LOG(INFO) << "saved step=" << step << " seconds=" << timer.total_seconds();
  env_.report(PhaseFrame{"training", ""});
  return timer.total_seconds();
}

void CheckpointSaver::TakeCommitResults() {
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
