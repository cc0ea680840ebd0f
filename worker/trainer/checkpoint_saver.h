// A rank's checkpoints on their way out: written to the job's staging folder, announced to the
// service, answered by it.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SAVER_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SAVER_H_

#include <cstdint>
#include <vector>

#include "worker/trainer/checkpoint/manifest.h"
#include "worker/trainer/config.h"
#include "worker/trainer/model_state.h"
#include "worker/trainer/parallel/comm.h"
#include "worker/trainer/trainer.h"

namespace switchyard {

// One thread. Borrows all it is made of.
class CheckpointSaver {
 public:
  CheckpointSaver(const TrainConfig& config, const TrainerEnvironment& environment,
                  ModelState& model, Comm& world);

  // Collective. Writes a checkpoint and announces it. `manifest` needs step, final and the losses.
  // Returns how long training stood still, in seconds. Throws TrainError STORAGE_IO, DISK_FULL.
  double Save(Manifest manifest, const TrainState& state);

  // A refused commit of a checkpoint on the way does not end training: it may be the service's
  // fault, and the next one may go through. It is reported as a warning.
  void TakeCommitResults();

  // Collective. Waits for the answer about the last checkpoint; the ranks wait together, in slices
  // shorter than the collectives' timeout. Throws TrainError STORAGE_IO when it was refused.
  void AwaitLastCommit();

  // Of the newest checkpoint; -1: none.
  int64_t last_step() const { return last_step_; }

 private:
  bool IsRankZero() const { return config_.run.rank == 0; }

  const TrainConfig& config_;
  const TrainerEnvironment& env_;
  ModelState& model_;
  Comm& world_;
  int64_t last_step_ = -1;
  std::vector<int64_t> uncommitted_;  // steps whose commit has not been answered
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SAVER_H_
