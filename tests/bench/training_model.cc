#include "tests/bench/training_model.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <utility>

#include "absl/strings/match.h"
#include "worker/trainer/batch_feeder.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/data/loader.h"
#include "worker/trainer/data/token_file.h"
#include "worker/trainer/models/weight_names.h"
#include "worker/trainer/optim/grad_clip.h"
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

void DrawWeights(ShardedParameterStore& store) {
  at::manual_seed(1);
  for (int b = 0; b < store.num_buckets(); ++b) {
    const at::Tensor flat = store.weight_shard(b);
    for (const TensorSlot& slot : store.layout(b).slots) {
      at::Tensor values = flat.narrow(0, slot.offset, slot.numel);
      if (slot.shape.size() == 1) {
        values.fill_(1.0);
      } else {
        values.normal_(0.0, absl::StrContains(slot.name, "embed_tokens") ? 1.0 : 0.02);
      }
    }
  }
  store.WeightsChanged();
}

Batch RandomBatch(const ModelConfig& config, int64_t rows, int64_t length) {
  Microbatch m;
  const at::Tensor ids = at::randint(0, config.vocab_size, {rows * length + 1}, at::kLong);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  m.cu_seqlens = {0};
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < length; ++i) {
      m.tokens.push_back(id[row * length + i]);
      m.targets.push_back(id[row * length + i + 1]);  // any id is as good
      m.positions.push_back(i);
    }
    m.cu_seqlens.push_back((row + 1) * length);
  }
  Batch batch;
  batch.tokens = batch.supervised = rows * length;
  batch.causal_pairs = rows * length * (length + 1) / 2;
  batch.rows = ToTensors(m);
  return batch;
}

at::Tensor Pinned(const at::Tensor& tensor, at::Device device) {
  return device.is_cuda() ? tensor.pin_memory() : tensor;
}

}  // namespace

std::vector<Batch> MakeBatches(const Options& options, const ModelConfig& config,
                               int64_t micro_batch, int64_t count, at::Device device) {
  std::vector<Batch> batches;
  if (options.data == "random") {
    at::manual_seed(7);
    for (int64_t i = 0; i < count; ++i) {
      batches.push_back(RandomBatch(config, micro_batch, options.sequence));
    }
  } else {
    const auto file = OrThrow(TokenFile::Open(options.data, /*verify=*/false));
    TORCH_CHECK(file->vocab_size() <= config.vocab_size, options.data, ": holds token id ",
                file->vocab_size() - 1, ", the model's vocabulary has ", config.vocab_size);
    LoaderOptions rows;
    rows.global_batch_size = rows.local_batch_size = micro_batch;
    Loader loader = OrThrow(Loader::Make(file.get(), rows));
    for (int64_t i = 0; i < count; ++i) {
      Batch batch;
      batch.rows = ToTensors(loader.Get(i, 0));
      batch.tokens = loader.TokensInStep(i);
      batch.supervised = loader.SupervisedInStep(i);
      batch.causal_pairs = loader.CausalPairsInStep(i);
      batches.push_back(std::move(batch));
    }
  }
  for (Batch& batch : batches) {
    batch.rows.tokens_T = Pinned(batch.rows.tokens_T, device);
    batch.rows.targets_T = Pinned(batch.rows.targets_T, device);
    batch.rows.positions_T = Pinned(batch.rows.positions_T, device);
  }
  return batches;
}

TrainingModel::TrainingModel(const ModelConfig& config, StateLayout layout, at::Device device)
    : config_(config),
      layout_(layout),
      mesh_(OrThrow(MakeMesh(1, 0, 1, 1, config.num_experts))),
      comms_(MakeC10dComms(mesh_, C10dOptions{})),
      store_(BuildBuckets(config, 0, config.num_experts), mesh_, comms_, StoreOptions(device)),
      adam_(OptimizerOptions(layout), store_, /*ep_rank=*/0),
      dispatcher_(config.num_experts) {
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
  return sums.ce_sum * loss_scale;
}

at::Tensor TrainingModel::Step(Decoder& decoder, const Batch& batch, StepTimer& timer) {
  const at::Tensor loss = ForwardBackward(decoder, batch);
  timer.Lap("forward_backward");
  const UpdateControl control = ControlUpdate(store_, comms_, loss, kMaxGradNorm);
  adam_.Step(++updates_, kLearningRate, control);
  store_.WeightsChanged();
  timer.Lap("optimizer");
  return loss;
}

}  // namespace switchyard::bench
