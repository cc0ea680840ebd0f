#include "worker/trainer/models/decoder.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <optional>
#include <utility>

#include "worker/trainer/models/activation_offload.h"
#include "worker/trainer/models/block.h"
#include "worker/trainer/models/device_batch.h"
#include "worker/trainer/models/held_bucket.h"
#include "worker/trainer/models/memory_plan.h"
#include "worker/trainer/models/parameters.h"
#include "worker/trainer/models/rope_frequencies.h"
#include "worker/trainer/models/weight_names.h"
#include "worker/trainer/ops/cross_entropy.h"
#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/embedding.h"
#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/rms_norm.h"
#include "worker/trainer/ops/router.h"

namespace switchyard {
namespace {

// Tables are made for this many positions at least, and for a power of two.
constexpr int64_t kMinPositions = 4096;

}  // namespace

struct Decoder::Impl {
  // The routing of all MoE layers, and what it costs.
  struct Routing {
    at::Tensor copies_LE;
    ops::AuxLossValue aux;
  };

  Impl(const ModelConfig& config, const DecoderOptions& options, ParameterStore& store,
       TokenDispatcher& dispatcher);

  // A micro-batch on its way through the model.
  struct Pass {
    DeviceBatch batch;
    std::optional<BatchContext> context;
    std::vector<RoutingSums> sums;  // of the MoE layers
  };

  // Turns `positions` into angles, with a longer table when they need one.
  ops::RopeAngles Angles(const DeviceBatch& batch, at::ScalarType type, at::Device device);
  // Copies the batch, embeds it and runs all blocks: the input of the final norm. `saved` (one per
  // block) may be null.
  at::Tensor Trunk(const DecoderBatch& batch, Pass* pass, std::vector<BlockSaved>* saved);
  // Once; the dispatcher may have lacked room.
  at::Tensor TryTrunk(const DecoderBatch& batch, Pass* pass, std::vector<BlockSaved>* saved);
  Routing Route(const Pass& pass, at::Device device) const;
  int64_t LossChunk(const at::Tensor& x_TH) const {
    return options.loss_chunk_tokens > 0 ? options.loss_chunk_tokens
                                         : DefaultLossChunkTokens(config, x_TH.is_cuda());
  }
  // Calls f(head parameters) while their buckets are held.
  template <typename F>
  auto WithHead(F f);

  ModelConfig config;
  DecoderOptions options;
  ParameterStore& store;
  TokenDispatcher& dispatcher;
  std::vector<BucketLayout> buckets;
  std::vector<Block> blocks;
  int embedding_bucket = 0;
  int head_bucket = 0;
  RopeFrequencies rope;
  ops::RopeTable rope_table;
  at::ScalarType rope_type = at::kFloat;
  ActivationOffload offload;
};

Decoder::Impl::Impl(const ModelConfig& config, const DecoderOptions& options, ParameterStore& store,
                    TokenDispatcher& dispatcher)
    : config(config),
      options(options),
      store(store),
      dispatcher(dispatcher),
      buckets(BuildBuckets(config, 0, dispatcher.num_local_experts())),
      rope(ComputeRopeFrequencies(config.rope, config.head_dim)) {
  head_bucket = static_cast<int>(buckets.size()) - 1;
  int next = 1;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    BlockBuckets of_block;
    of_block.dense = next++;
    of_block.dense_layout = &buckets[of_block.dense];
    if (config.IsMoeLayer(layer)) {
      of_block.experts = next++;
      of_block.experts_layout = &buckets[of_block.experts];
    }
    blocks.emplace_back(layer, of_block, store);
  }
}

ops::RopeAngles Decoder::Impl::Angles(const DeviceBatch& batch, at::ScalarType type,
                                      at::Device device) {
  if (!rope_table.cos_Pr.defined() || rope_table.cos_Pr.size(0) < batch.num_positions ||
      rope_table.cos_Pr.device() != device || rope_type != type) {
    int64_t positions = kMinPositions;
    while (positions < batch.num_positions) positions *= 2;
    rope_table = ops::MakeRopeTable(rope.inverse_r, rope.attention_scale, positions, type, device);
    rope_type = type;
  }
  return ops::MakeRopeAngles(rope_table, batch.positions_T, type);
}

at::Tensor Decoder::Impl::Trunk(const DecoderBatch& batch, Pass* pass,
                                std::vector<BlockSaved>* saved) {
  at::Tensor x_TH;
  do {
    x_TH.reset();
    pass->sums.clear();
    if (saved != nullptr) saved->clear();
    x_TH = TryTrunk(batch, pass, saved);
  } while (dispatcher.MustRepeat());
  return x_TH;
}

at::Tensor Decoder::Impl::TryTrunk(const DecoderBatch& batch, Pass* pass,
                                   std::vector<BlockSaved>* saved) {
  const bool recompute = options.activation_memory != ActivationMemory::kLean;
  const bool offloads = options.activation_memory == ActivationMemory::kOffload;
  blocks.front().Prefetch();
  at::Tensor x_TH;
  {
    const HeldBucket embedding(store, embedding_bucket);
    const at::Tensor weight_VH = ViewEmbedding(config, embedding.flat());
    pass->batch = CopyToDevice(batch, config.vocab_size, weight_VH.device());
    x_TH = ops::EmbeddingForward(pass->batch.tokens_T, weight_VH);
  }
  pass->context.emplace(
      BatchContext{config, dispatcher, options.router_fp32, options.aux_loss != AuxLoss::kOff,
                   Angles(pass->batch, x_TH.scalar_type(), x_TH.device()),
                   ops::MakeAttentionPlan(batch.cu_seqlens, x_TH.device(), options.deterministic)});
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (i + 1 < blocks.size()) {
      blocks[i + 1].Prefetch();
    } else {
      store.Prefetch(head_bucket);
    }
    RoutingSums* block_sums = blocks[i].is_moe() ? &pass->sums.emplace_back() : nullptr;
    BlockSaved* block_saved = saved != nullptr ? &saved->emplace_back() : nullptr;
    x_TH = blocks[i].Forward(*pass->context, x_TH, recompute, block_saved, block_sums);
    if (block_saved != nullptr && offloads) offload.Store(&block_saved->x_TH);
  }
  return x_TH;
}

Decoder::Impl::Routing Decoder::Impl::Route(const Pass& pass, at::Device device) const {
  Routing out;
  out.aux.value = at::zeros({}, at::device(device).dtype(at::kDouble));
  if (pass.sums.empty()) {
    out.copies_LE = at::zeros({0, config.num_experts}, at::device(device).dtype(at::kLong));
    return out;
  }
  std::vector<at::Tensor> offsets, probs;
  for (const RoutingSums& layer : pass.sums) {
    offsets.push_back(layer.offsets_E1);
    if (layer.prob_sums_E.defined()) probs.push_back(layer.prob_sums_E);
  }
  out.copies_LE = at::diff(at::stack(offsets), 1, /*dim=*/1).to(at::kLong);
  const int64_t tokens = pass.batch.num_tokens;
  switch (options.aux_loss) {
    case AuxLoss::kOff:
      break;
    case AuxLoss::kHf:
      out.aux = ops::HfAuxLoss(out.copies_LE, at::stack(probs), tokens);
      break;
    case AuxLoss::kMegatron:
      out.aux = ops::MegatronAuxLoss(out.copies_LE, at::stack(probs), tokens, config.top_k);
      break;
  }
  return out;
}

template <typename F>
auto Decoder::Impl::WithHead(F f) {
  const HeldBucket held(store, head_bucket);
  HeadParameters head = ViewHead(config, buckets[head_bucket], held.flat());
  std::optional<HeldBucket> embedding;
  if (config.tie_word_embeddings) {
    embedding.emplace(store, embedding_bucket);
    head.weight_VH = ViewEmbedding(config, embedding->flat());
  }
  return f(head);
}

Decoder::Decoder(const ModelConfig& config, const DecoderOptions& options, ParameterStore& store,
                 TokenDispatcher& dispatcher)
    : impl_(std::make_unique<Impl>(config, options, store, dispatcher)) {}

Decoder::~Decoder() = default;

LossSums Decoder::ForwardBackward(const DecoderBatch& batch, double loss_scale, double aux_scale) {
  Impl& m = *impl_;
  const c10::NoGradGuard no_grad;
  Impl::Pass pass;
  std::vector<BlockSaved> saved;
  at::Tensor x_TH = m.Trunk(batch, &pass, &saved);
  const Impl::Routing routing = m.Route(pass, x_TH.device());

  LossSums out;
  out.supervised = pass.batch.supervised;
  at::Tensor dx_TH = m.WithHead([&](const HeadParameters& head) {
    m.blocks.back().Prefetch();
    const GradientBuffer buffer = m.store.Gradient(m.head_bucket);
    HeadParameters gradients = ViewHead(m.config, m.buckets[m.head_bucket], buffer.flat);
    ops::CrossEntropyGradients into;
    into.scale = loss_scale;
    into.dweight_VH = gradients.weight_VH;
    into.accumulate = buffer.accumulate;
    if (m.config.tie_word_embeddings) {
      const GradientBuffer tied = m.store.Gradient(m.embedding_bucket);
      into.dweight_VH = ViewEmbedding(m.config, tied.flat);
      into.accumulate = tied.accumulate;
    }
    const ops::RmsNormOutput hidden = ops::RmsNormForward(x_TH, head.norm_H, m.config.rms_norm_eps);
    into.dhidden_TH = at::empty(x_TH.sizes(), x_TH.options());
    out.ce_sum = ops::LinearCrossEntropy(hidden.y_RD, head.weight_VH, pass.batch.targets,
                                         m.LossChunk(x_TH), &into);
    return ops::RmsNormBackward(into.dhidden_TH, x_TH, hidden.inverse_rms_R, head.norm_H,
                                m.config.rms_norm_eps, {}, gradients.norm_H, buffer.accumulate);
  });
  x_TH.reset();
  m.store.GradientDone(m.head_bucket);

  at::Tensor daux_LE;
  if (routing.aux.dprob_LE.defined()) {
    daux_LE = (routing.aux.dprob_LE * aux_scale).to(ops::AccumulateType(dx_TH));
  }
  DeferredGradients deferred;
  int64_t moe_layer = static_cast<int64_t>(pass.sums.size());
  for (size_t i = m.blocks.size(); i-- > 0;) {
    if (i > 0) {
      m.blocks[i - 1].Prefetch();
      m.offload.Prefetch(&saved[i - 1].x_TH);
    }
    at::Tensor daux_E;
    if (m.blocks[i].is_moe()) {
      --moe_layer;
      if (daux_LE.defined()) daux_E = daux_LE[moe_layer];
    }
    BlockSaved of_block = std::move(saved.back());
    saved.pop_back();
    m.offload.Load(&of_block.x_TH);
    dx_TH = m.blocks[i].Backward(*pass.context, dx_TH, daux_E, std::move(of_block), &deferred);
  }
  deferred.Compute();
  const GradientBuffer embedding = m.store.Gradient(m.embedding_bucket);
  // A tied head has written first.
  ops::EmbeddingBackward(dx_TH, pass.batch.tokens_T, m.config.pad_token_id,
                         ViewEmbedding(m.config, embedding.flat),
                         embedding.accumulate || m.config.tie_word_embeddings);
  m.store.GradientDone(m.embedding_bucket);
  out.aux = routing.aux.value * aux_scale;
  out.token_copies_LE = routing.copies_LE;
  return out;
}

LossSums Decoder::Evaluate(const DecoderBatch& batch) {
  Impl& m = *impl_;
  const c10::NoGradGuard no_grad;
  Impl::Pass pass;
  const at::Tensor x_TH = m.Trunk(batch, &pass, nullptr);
  const Impl::Routing routing = m.Route(pass, x_TH.device());
  const at::Tensor ce_sum = m.WithHead([&](const HeadParameters& head) {
    return ops::LinearCrossEntropy(
        ops::RmsNormForward(x_TH, head.norm_H, m.config.rms_norm_eps).y_RD, head.weight_VH,
        pass.batch.targets, m.LossChunk(x_TH), nullptr);
  });
  return {ce_sum, pass.batch.supervised, routing.aux.value, routing.copies_LE};
}

at::Tensor Decoder::Logits(const DecoderBatch& batch) {
  Impl& m = *impl_;
  const c10::NoGradGuard no_grad;
  Impl::Pass pass;
  const at::Tensor x_TH = m.Trunk(batch, &pass, nullptr);
  return m.WithHead([&](const HeadParameters& head) {
    return ops::LinearForward(ops::RmsNormForward(x_TH, head.norm_H, m.config.rms_norm_eps).y_RD,
                              head.weight_VH, {});
  });
}

}  // namespace switchyard
