#include "tests/bench/training_model.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <functional>
#include <utility>

#include "absl/strings/match.h"
#include "tests/bench/seed_scope.h"
#include "worker/trainer/batch_feeder.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/data/loader.h"
#include "worker/trainer/data/token_file.h"
#include "worker/trainer/models/weight_names.h"
#include "worker/trainer/parallel/c10d_comm.h"

namespace switchyard::bench {
namespace {

constexpr double kLearningRate = 1e-5;
constexpr double kMaxGradNorm = 1.0;

FsdpOptions StoreOptions(at::Device device) {
  FsdpOptions options;
  options.weight_dtype = at::kBFloat16;
  options.gradient_dtype = at::kBFloat16;
  options.device = device;
  return options;
}

AdamOptions OptimizerOptions(StateLayout layout) {
  AdamOptions options;
  options.moment_dtype = at::kBFloat16;
  options.exact_master = layout == StateLayout::kExact;
  return options;
}

// A tensor's numbers depend on its name alone, so that every mesh gets the same model.
void DrawWeights(ShardedParameterStore& store) {
  for (int b = 0; b < store.num_buckets(); ++b) {
    const BucketLayout& layout = store.layout(b);
    const at::Tensor shard = store.weight_shard(b);
    const ShardRange& range = store.shard_range(b);
    const bool whole = range.numel() == layout.numel;
    const at::Tensor flat = whole ? shard : at::empty({layout.numel}, shard.options());
    for (const TensorSlot& slot : layout.slots) {
      at::Tensor values = flat.narrow(0, slot.offset, slot.numel);
      if (slot.shape.size() == 1) {
        values.fill_(1.0);
      } else {
        const SeedScope seed(std::hash<std::string>()(slot.name));
        values.normal_(0.0, absl::StrContains(slot.name, "embed_tokens") ? 1.0 : 0.02);
      }
    }
    if (!whole) shard.copy_(flat.narrow(0, range.begin, range.numel()));
  }
  store.WeightsChanged();
}

int64_t CausalPairs(const std::vector<int64_t>& cu_seqlens) {
  int64_t pairs = 0;
  for (size_t i = 1; i < cu_seqlens.size(); ++i) {
    const int64_t n = cu_seqlens[i] - cu_seqlens[i - 1];
    pairs += n * (n + 1) / 2;
  }
  return pairs;
}

// `rows` rows of random ids, each a document.
void AppendRandomRows(const ModelConfig& config, int64_t rows, int64_t length, Microbatch* m) {
  const at::Tensor ids = at::randint(0, config.vocab_size, {rows * length + 1}, at::kLong);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  if (m->cu_seqlens.empty()) m->cu_seqlens = {0};
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < length; ++i) {
      m->tokens.push_back(id[row * length + i]);
      m->targets.push_back(id[row * length + i + 1]);  // any id is as good
      m->positions.push_back(i);
    }
    m->cu_seqlens.push_back(m->cu_seqlens.back() + length);
  }
}

// The rows of ranks [first, last) of `world` in step `step`.
Batch RandomBatch(const Options& options, const ModelConfig& config, int64_t rows, int64_t step,
                  int first, int last, int world) {
  Microbatch m;
  for (int rank = first; rank < last; ++rank) {
    const SeedScope seed(7 + step * world + rank);
    AppendRandomRows(config, rows, options.sequence, &m);
  }
  Batch batch;
  batch.tokens = static_cast<int64_t>(m.tokens.size());
  batch.supervised = rows * options.sequence * world;
  batch.rows = ToTensors(m);
  return batch;
}

at::Tensor Pinned(const at::Tensor& tensor, at::Device device) {
  return device.is_cuda() ? tensor.pin_memory() : tensor;
}

void FinishBatch(at::Device device, Batch* batch) {
  batch->causal_pairs = CausalPairs(batch->rows.cu_seqlens);
  batch->rows.tokens_T = Pinned(batch->rows.tokens_T, device);
  batch->rows.targets_T = Pinned(batch->rows.targets_T, device);
  batch->rows.positions_T = Pinned(batch->rows.positions_T, device);
}

}  // namespace

std::vector<Batch> MakeBatches(const Options& options, const ModelConfig& config,
                               int64_t micro_batch, int64_t count, at::Device device, int rank,
                               int world) {
  std::vector<Batch> batches;
  if (options.data == "random") {
    for (int64_t i = 0; i < count; ++i) {
      batches.push_back(RandomBatch(options, config, micro_batch, i, rank, rank + 1, world));
    }
  } else {
    const auto file = OrThrow(TokenFile::Open(options.data, /*verify=*/false));
    TORCH_CHECK(file->vocab_size() <= config.vocab_size, options.data, ": holds token id ",
                file->vocab_size() - 1, ", the model's vocabulary has ", config.vocab_size);
    LoaderOptions rows;
    rows.local_batch_size = micro_batch;
    rows.global_batch_size = micro_batch * world;
    rows.dp_rank = rank;
    rows.dp_size = world;
    Loader loader = OrThrow(Loader::Make(file.get(), rows));
    for (int64_t i = 0; i < count; ++i) {
      Batch batch;
      batch.rows = ToTensors(loader.Get(i, 0));
      batch.tokens = batch.rows.tokens_T.numel();
      batch.supervised = loader.SupervisedInStep(i);
      batches.push_back(std::move(batch));
    }
  }
  for (Batch& batch : batches) FinishBatch(device, &batch);
  return batches;
}

std::vector<Batch> MakeJointBatches(const Options& options, const ModelConfig& config,
                                    int64_t micro_batch, int64_t count, at::Device device,
                                    int world) {
  TORCH_CHECK(options.data == "random", "parity: --data random only");
  std::vector<Batch> batches;
  for (int64_t i = 0; i < count; ++i) {
    batches.push_back(RandomBatch(options, config, micro_batch, i, 0, world, world));
    FinishBatch(device, &batches.back());
  }
  return batches;
}

TrainingModel::TrainingModel(const ModelConfig& config, StateLayout layout, at::Device device)
    : config_(config),
      layout_(layout),
      mesh_(OrThrow(MakeMesh(1, 0, 1, 1, config.num_experts))),
      own_comms_(MakeC10dComms(mesh_, C10dOptions{})),
      own_dispatcher_(config.num_experts),
      comms_(*own_comms_),
      dispatcher_(*own_dispatcher_),
      store_(BuildBuckets(config, 0, config.num_experts), mesh_, comms_, StoreOptions(device)),
      adam_(OptimizerOptions(layout), store_, /*ep_rank=*/0) {
  DrawWeights(store_);
}

TrainingModel::TrainingModel(const ModelConfig& config, StateLayout layout, at::Device device,
                             const Mesh& mesh, const Comms& comms, TokenDispatcher& dispatcher)
    : config_(config),
      layout_(layout),
      mesh_(mesh),
      comms_(comms),
      dispatcher_(dispatcher),
      store_(BuildBuckets(config, mesh.ep_rank() * dispatcher.num_local_experts(),
                          (mesh.ep_rank() + 1) * dispatcher.num_local_experts()),
             mesh_, comms_, StoreOptions(device)),
      adam_(OptimizerOptions(layout), store_, mesh.ep_rank()) {
  DrawWeights(store_);
}

std::unique_ptr<Decoder> TrainingModel::MakeDecoder(ActivationMemory activations) {
  DecoderOptions options;
  options.activation_memory = activations;
  return std::make_unique<Decoder>(config_, options, store_, dispatcher_);
}

at::Tensor TrainingModel::ForwardBackward(Decoder& decoder, const Batch& batch) {
  const double loss_scale = 1.0 / static_cast<double>(batch.supervised);
  store_.BeginMicrobatch(/*first=*/true, /*last=*/true);
  const LossSums sums = decoder.ForwardBackward(batch.rows, loss_scale, /*aux_scale=*/0);
  store_.FinishGradients();
  at::Tensor loss_1 = (sums.ce_sum * loss_scale).view({1});
  comms_[Axis::kWorld].AllReduceSum(loss_1);
  return loss_1[0];
}

at::Tensor TrainingModel::Step(Decoder& decoder, const Batch& batch, StepTimer& timer) {
  const at::Tensor loss = ForwardBackward(decoder, batch);
  timer.Lap("forward_backward");
  control_ = ControlUpdate(store_, comms_, loss, kMaxGradNorm);
  adam_.Step(++updates_, kLearningRate, control_);
  store_.WeightsChanged();
  timer.Lap("optimizer");
  return loss;
}

}  // namespace switchyard::bench
