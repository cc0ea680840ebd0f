// What one rank is to do: the config frame of docs/contracts.md as typed, checked values.
// Torch-free.
#ifndef SWITCHYARD_WORKER_TRAINER_CONFIG_H_
#define SWITCHYARD_WORKER_TRAINER_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/json.h"
#include "worker/link/messages.h"
#include "worker/trainer/optim/lr_schedule.h"

namespace switchyard {

enum class TrainDtype { kFloat32, kBfloat16 };

struct TrainConfig {
  enum class Aux { kHf, kMegatron, kOff };
  enum class Activations { kLean, kFullRecompute, kOffload };

  struct Run {
    std::string job_name;
    std::string job_uid;
    int64_t attempt = 0;
    int64_t rank = 0;
    int64_t world_size = 1;
    std::string master_address = "127.0.0.1";
    int64_t master_port = 0;     // not needed by a gang of one
    std::string device = "cpu";  // or "cuda:<index>"
    int64_t threads = 1;         // CPU threads of this rank
    std::string job_dir;         // checkpoints go to its staging folder
    std::string resume_from;     // a checkpoint of this job, before checkpoint.restore_from
    uint32_t seed = 42;
    bool deterministic = false;  // prefer kernels whose sums have a fixed order; the CPU's have
  };
  struct Model {
    std::string path;
    TrainDtype dtype = TrainDtype::kFloat32;  // of weights and activations
    bool random_init = false;
    bool router_fp32 = false;
    Aux aux_loss = Aux::kHf;
    std::optional<double> aux_loss_coef;  // unset: the model config decides
    Activations activations = Activations::kLean;
    int64_t loss_chunk_tokens = 0;
  };
  struct Data {
    std::string train_tokens;
    std::vector<TokensFile> validation_tokens;
    bool shuffle = true;
  };
  struct Batch {
    int64_t global_batch_size = 1;
    int64_t local_batch_size = 1;
    int64_t max_steps = 0;  // 0: num_epochs decides; with both the smaller number of steps counts
    int64_t num_epochs = 0;
    int64_t val_every_steps = 0;
  };
  struct Optimizer {
    bool decoupled = true;  // AdamW; false: Adam
    double beta1 = 0.9;
    double beta2 = 0.999;
    double eps = 1e-8;
    double weight_decay = 0.0;
    double max_grad_norm = 0;  // 0: no clipping
    TrainDtype moment_dtype = TrainDtype::kFloat32;
    TrainDtype gradient_dtype = TrainDtype::kFloat32;
    bool exact_master = true;  // of bf16 weights
    int64_t max_nonfinite_steps = 3;
  };
  struct Parallel {
    int64_t ep_size = 1;
    int64_t dp_replicate_size = 1;
    bool reshard_after_forward = true;
    absl::Duration collective_timeout = absl::Seconds(600);
  };
  struct Checkpoint {
    int64_t every_steps = 0;
    bool every_epoch = false;
    bool save_optimizer = false;
    int64_t max_shard_bytes = 5'000'000'000;
    std::string restore_from;
  };

  Run run;
  Model model;
  Data data;
  Batch batch;
  Optimizer optimizer;
  LrSchedule lr_schedule;  // decay_steps 0: the job's length
  Json lr_schedule_spec;   // the job's LrScheduleSpec as it came, for the checkpoint's record
  Parallel parallel;
  Checkpoint checkpoint;

  // Every fault in words; empty: consistent. What depends on the model and the data (num_experts,
  // steps) is checked when they are known.
  std::vector<std::string> Validate() const;
};

// Reads types and names; a member that is missing has proto3's meaning of unset.
// Errors: InvalidArgument with all faults, separated by "; ": wrong types, unknown enum names.
absl::StatusOr<TrainConfig> ReadTrainConfig(const ConfigFrame& frame);

// Steps of the whole job. Errors: InvalidArgument when neither max_steps nor num_epochs is set.
absl::StatusOr<int64_t> TotalSteps(const TrainConfig::Batch& batch, int64_t steps_per_epoch);

// The schedule with decay_steps filled in. Errors: InvalidArgument with all faults.
absl::StatusOr<LrSchedule> ResolveLrSchedule(const LrSchedule& schedule, int64_t total_steps);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CONFIG_H_
