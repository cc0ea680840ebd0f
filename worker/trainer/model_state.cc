#include "worker/trainer/model_state.h"

#include <ATen/ATen.h>

#include <utility>

#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/checkpoint/reader.h"
#include "worker/trainer/failure.h"
#include "worker/trainer/models/init.h"
#include "worker/trainer/models/weight_names.h"

namespace switchyard {
namespace {

at::ScalarType ScalarType(TrainDtype dtype) {
  return dtype == TrainDtype::kFloat32 ? at::kFloat : at::kBFloat16;
}

TensorDtype FileDtype(TrainDtype dtype) {
  return dtype == TrainDtype::kFloat32 ? TensorDtype::kF32 : TensorDtype::kBf16;
}

std::vector<BucketLayout> LocalBuckets(const ModelConfig& model, const Mesh& mesh) {
  const int64_t local = model.num_experts / mesh.ep_size;
  return BuildBuckets(model, mesh.ep_rank() * local, (mesh.ep_rank() + 1) * local);
}

FsdpOptions StoreOptions(const TrainConfig& config, at::Device device) {
  FsdpOptions options;
  options.device = device;
  options.gradient_dtype = ScalarType(config.optimizer.gradient_dtype);
  options.weight_dtype = ScalarType(config.model.dtype);
  options.reshard_after_forward = config.parallel.reshard_after_forward;
  return options;
}

AdamOptions OptimizerOptions(const TrainConfig& config) {
  AdamOptions options;
  options.decoupled = config.optimizer.decoupled;
  options.beta1 = config.optimizer.beta1;
  options.beta2 = config.optimizer.beta2;
  options.eps = config.optimizer.eps;
  options.weight_decay = config.optimizer.weight_decay;
  options.moment_dtype = ScalarType(config.optimizer.moment_dtype);
  options.exact_master = config.optimizer.exact_master;
  options.seed = config.run.seed;
  return options;
}

}  // namespace

ModelState::ModelState(const TrainConfig& config, const ModelConfig& model, const Mesh& mesh,
                       const Comms& comms, at::Device device)
    : config_(config),
      model_(model),
      mesh_(mesh),
      comms_(comms),
      whole_model_(BuildBuckets(model, 0, model.num_experts)),
      store_(LocalBuckets(model, mesh), mesh, comms, StoreOptions(config, device)),
      adam_(OptimizerOptions(config), store_, mesh.ep_rank()) {}

std::vector<BucketShard> ModelState::Shards() {
  std::vector<BucketShard> shards;
  for (int b = 0; b < store_.num_buckets(); ++b) {
    BucketShard shard;
    shard.layout = store_.layout(b);
    shard.begin = store_.shard_range(b).begin;
    shard.end = store_.shard_range(b).end;
    shard.weights = store_.weight_shard(b);
    shard.remainder = adam_.state(b).remainder;
    shard.exp_avg = adam_.state(b).exp_avg;
    shard.exp_avg_sq = adam_.state(b).exp_avg_sq;
    shard.writer = mesh_.AxisRank(Axis::kDpReplicate) == 0;
    shards.push_back(std::move(shard));
  }
  return shards;
}

std::optional<TrainState> ModelState::Load(const std::string& checkpoint) {
  return Blame(FailureReason::kCheckpointInvalid, [&]() -> std::optional<TrainState> {
    const std::vector<BucketShard> shards = Shards();
    Comm& world = comms_[Axis::kWorld];
    std::optional<WeightSource> source;
    std::optional<TrainState> state;
    CheckCoverage(whole_model_, shards, world);
    if (!checkpoint.empty()) {
      LoadedCheckpoint loaded = LoadCheckpoint(checkpoint, whole_model_, shards, world);
      source = std::move(loaded.source);
      state = std::move(loaded.state);
    } else if (config_.model.random_init) {
      for (const BucketShard& shard : shards) {
        InitializeBucket(model_, shard.layout, config_.run.seed, shard.begin, shard.weights);
      }
    } else {
      source = LoadWeights(config_.model.path, whole_model_, shards, world);
    }
    store_.WeightsChanged();

    CheckpointFormat format;
    format.weight_dtype = FileDtype(config_.model.dtype);
    format.max_shard_bytes = config_.checkpoint.max_shard_bytes;
    format.save_optimizer = config_.checkpoint.save_optimizer;
    format.moment_dtype = FileDtype(config_.optimizer.moment_dtype);
    plan_ = OrThrow(PlanCheckpoint(whole_model_, source.has_value() ? &*source : nullptr, format));
    return state;
  });
}

int64_t ModelState::bytes() const {
  int64_t bytes = adam_.state_bytes();
  for (int b = 0; b < store_.num_buckets(); ++b) {
    bytes += static_cast<int64_t>(store_.weight_slice(b).nbytes());
  }
  return bytes;
}

const CheckpointPlan& ModelState::plan() const {
  TORCH_CHECK(plan_.has_value(), "bug: model state: no plan of checkpoints before Load");
  return *plan_;
}

}  // namespace switchyard
