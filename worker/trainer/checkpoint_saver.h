// A rank's checkpoints: taken between steps, written to the job's staging folder while training
// goes on, announced to the service, answered by it.
//
//   training thread    step n | snapshot queued | step n+1: forward, backward | update waits for
//   the
//                      copies, on the device | ...
//   writer thread                               waits for the copies, writes the files, agrees with
//                                               the other ranks' writers over a group of their own
//
// The snapshot costs host memory: one more copy of what this rank saves, for the whole run. Without
// enough of it, and for checkpoints after which the rank stops anyway, the writer reads the device
// in small pieces, and the training thread waits.
//
// A write that fails is a warning, not the end of training; but the last checkpoint of a job must
// succeed.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SAVER_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SAVER_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "base/thread.h"
#include "worker/trainer/checkpoint/manifest.h"
#include "worker/trainer/checkpoint/output_plan.h"
#include "worker/trainer/checkpoint/shards.h"
#include "worker/trainer/checkpoint/snapshot.h"
#include "worker/trainer/config.h"
#include "worker/trainer/parallel/comms.h"
#include "worker/trainer/trainer.h"

namespace switchyard {

// Used by the training thread. All ranks make the same calls in the same order.
class CheckpointSaver {
 public:
  // Collective. Borrows all but `shards`, which hold handles of the trainer's tensors. `periodic`:
  // there will be checkpoints on the way, for which memory is taken in the background.
  CheckpointSaver(const TrainConfig& config, const TrainerEnvironment& environment,
                  const CheckpointPlan& plan, std::vector<BucketShard> shards, const Comms& comms,
                  bool periodic);
  // Gives up a checkpoint that is being written.
  ~CheckpointSaver();

  // Begins a checkpoint of what is queued on the device: `Finish` follows when the step's numbers
  // are known, before the next update. Waits while the checkpoint before is being written: there
  // are never two.
  void Begin();
  bool begun() const { return begun_; }
  // Hands the checkpoint over to the writer; without a snapshot it waits until it is written.
  // `manifest` needs step, final and the losses.
  void Finish(Manifest manifest, TrainState state);
  // Before the weights or the optimizer's state change.
  void BeforeUpdate();

  // Saves when training stands still, and waits until it is written. Throws TrainError STORAGE_IO
  // or DISK_FULL when a final one cannot be.
  void SaveNow(Manifest manifest, TrainState state);

  // At step boundaries: announces what has been written, warns of writes that failed and of commits
  // that were refused. A refused commit does not end training either: it may be the service's
  // fault, and the next one may go through.
  void Poll();
  // Waits until nothing is being written; then as Poll.
  void Drain();
  // Collective, after Drain. Waits for the answer about the last checkpoint; the ranks wait
  // together, in slices shorter than the collectives' timeout. Throws TrainError STORAGE_IO when it
  // was refused.
  void AwaitLastCommit();

  // Of the newest checkpoint that was written; -1: none. The same on all ranks after Drain.
  int64_t last_step() const { return last_step_; }
  int64_t failures() const { return failures_; }
  // How long training has stood still for checkpoints since the last call, on the host's clock.
  double TakeStallSeconds();

 private:
  struct Job {
    Manifest manifest;
    TrainState state;
    std::string folder;
    bool from_snapshot = false;
  };
  struct Outcome {
    Job job;
    absl::Status status;
    uint32_t manifest_crc32c = 0;
    double seconds = 0;
  };

  bool IsRankZero() const { return config_.run.rank == 0; }
  // Whether this rank's host has room for the snapshots of all its ranks. Collective.
  bool HasRoomForSnapshots(Comm& gang) const;
  void Post(Manifest manifest, TrainState state, bool from_snapshot);
  void AwaitWriter();
  std::optional<Outcome> TakeOutcome() ABSL_LOCKS_EXCLUDED(mu_);
  // Reports what became of a write. Returns its status.
  absl::Status Handle(const Outcome& outcome);
  // The writer thread.
  void WriteJobs() ABSL_LOCKS_EXCLUDED(mu_);
  Outcome Write(Job job);

  const TrainConfig& config_;
  const TrainerEnvironment& env_;
  const CheckpointPlan& plan_;
  const std::vector<BucketShard> shards_;
  Comm& world_;
  Comm& gang_;  // the writer's own
  std::optional<Snapshot> snapshot_;
  bool begun_ = false;
  bool snapshot_taken_ = false;  // for the checkpoint begun
  int64_t last_step_ = -1;
  int64_t failures_ = 0;
  int64_t waits_ = 0;
  double stall_seconds_ = 0;
  std::vector<int64_t> uncommitted_;  // steps whose commit has not been answered

  std::atomic<bool> cancelled_{false};
  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool busy_ ABSL_GUARDED_BY(mu_) = false;               // with a job, or with reserving memory
  bool has_snapshot_ ABSL_GUARDED_BY(mu_) = false;       // its memory is there
  std::optional<Job> job_ ABSL_GUARDED_BY(mu_);          // not begun
  std::optional<Outcome> outcome_ ABSL_GUARDED_BY(mu_);  // not taken
  Thread writer_;  // last: joined before the members it reads are destroyed
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SAVER_H_
