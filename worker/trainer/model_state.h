// One rank's share of a model in training: sharded weights, optimizer state, and their checkpoints.
#ifndef SWITCHYARD_WORKER_TRAINER_MODEL_STATE_H_
#define SWITCHYARD_WORKER_TRAINER_MODEL_STATE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "worker/trainer/checkpoint/manifest.h"
#include "worker/trainer/checkpoint/output_plan.h"
#include "worker/trainer/checkpoint/shards.h"
#include "worker/trainer/config.h"
#include "worker/trainer/models/model_config.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/parallel/comms.h"
#include "worker/trainer/parallel/fsdp.h"
#include "worker/trainer/parallel/mesh.h"

namespace switchyard {

// One thread. Members that say so are collective over the world.
class ModelState {
 public:
  // Allocates weights and optimizer state. Borrows all arguments.
  ModelState(const TrainConfig& config, const ModelConfig& model, const Mesh& mesh,
             const Comms& comms, at::Device device);

  // Collective. Fills the weights: from `checkpoint` (a folder of ours), else from model.path, else
  // fresh ones. Returns the checkpoint's state; nullopt: training begins at step 0.
  // Throws TrainError CHECKPOINT_INVALID, STORAGE_IO.
  std::optional<TrainState> Load(const std::string& checkpoint);

  // What checkpoints of this job look like. After Load.
  const CheckpointPlan& plan() const;
  // Handles of this rank's tensors, for saving and loading.
  std::vector<BucketShard> Shards();

  // Weights and optimizer state of this rank.
  int64_t bytes() const;

  ShardedParameterStore& store() { return store_; }
  Adam& adam() { return adam_; }

 private:
  const TrainConfig& config_;
  const ModelConfig& model_;
  const Mesh& mesh_;
  const Comms& comms_;
  std::vector<BucketLayout> whole_model_;  // with all experts
  ShardedParameterStore store_;
  Adam adam_;
  std::optional<CheckpointPlan> plan_;  // made by Load
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODEL_STATE_H_
