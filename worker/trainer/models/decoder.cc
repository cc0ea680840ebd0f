#include "worker/trainer/models/decoder.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <optional>
#include <utility>

#include "worker/trainer/models/block.h"
#include "worker/trainer/models/held_bucket.h"
#include "worker/trainer/models/memory_plan.h"
#include "worker/trainer/models/parameters.h"
#include "worker/trainer/models/rope_frequencies.h"
#include "worker/trainer/models/weight_names.h"
#include "worker/trainer/ops/cross_entropy.h"
#include "worker/trainer/ops/embedding.h"
#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/rms_norm.h"
#include "worker/trainer/ops/router.h"

namespace switchyard {
namespace {

void CheckIds(const char* what, const at::Tensor& ids_T, int64_t vocab_size) {
  if (ids_T.numel() == 0) return;
  const int64_t smallest = ids_T.min().item<int64_t>();
  const int64_t largest = ids_T.max().item<int64_t>();
  TORCH_CHECK(smallest >= 0 && largest < vocab_size, "batch: ", what, " ", smallest, " to ",
              largest, " do not fit a vocabulary of ", vocab_size);
}

void CheckBatch(const DecoderBatch& batch, const ModelConfig& config) {
  for (const at::Tensor* ids : {&batch.tokens_T, &batch.targets_T, &batch.positions_T}) {
    TORCH_CHECK(ids->defined() && ids->dim() == 1 && ids->scalar_type() == at::kLong &&
                    ids->size(0) == batch.tokens_T.size(0),
                "batch: tokens, targets and positions must be int64 [T] of one length, got ",
                batch.tokens_T.sizes(), ", ", batch.targets_T.sizes(), ", ",
                batch.positions_T.sizes());
  }
  TORCH_CHECK(!batch.cu_seqlens.empty() && batch.cu_seqlens.back() == batch.tokens_T.size(0),
              "batch: documents end at ",
              batch.cu_seqlens.empty() ? int64_t{-1} : batch.cu_seqlens.back(), ", there are ",
              batch.tokens_T.size(0), " tokens");
  CheckIds("tokens", batch.tokens_T, config.vocab_size);
  CheckIds("targets", batch.targets_T.masked_fill(batch.targets_T.eq(-100), 0), config.vocab_size);
}

}  // namespace

struct Decoder::Impl {
  // The routing of all MoE layers, and what it costs.
  struct Routing {
    at::Tensor copies_LE;
    ops::AuxLossValue aux;
  };

  Impl(const ModelConfig& config, const DecoderOptions& options, ParameterStore& store,
       TokenDispatcher& dispatcher);

  BatchContext MakeContext(const DecoderBatch& batch, at::ScalarType type) const;
  // Embeds and runs all blocks: the input of the final norm. `saved` (one per block) and `sums`
  // (one per MoE layer) may be null. `context` is made once the dtype is known.
  at::Tensor Trunk(const DecoderBatch& batch, std::optional<BatchContext>* context,
                   std::vector<BlockSaved>* saved, std::vector<RoutingSums>* sums);
  Routing Route(const std::vector<RoutingSums>& sums, int64_t tokens) const;
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
};

Decoder::Impl::Impl(const ModelConfig& config, const DecoderOptions& options, ParameterStore& store,
                    TokenDispatcher& dispatcher)
    : config(config),
      options(options),
      store(store),
      dispatcher(dispatcher),
      buckets(BuildBuckets(config, 0, dispatcher.num_local_experts())),
      rope(ComputeRopeFrequencies(config.rope, config.head_dim)) {
  if (this->options.loss_chunk_tokens == 0) {
    this->options.loss_chunk_tokens = DefaultLossChunkTokens(config);
  }
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

BatchContext Decoder::Impl::MakeContext(const DecoderBatch& batch, at::ScalarType type) const {
  return {config, dispatcher, options.router_fp32,
          ops::MakeRopeAngles(batch.positions_T, rope.inverse_r, rope.attention_scale, type),
          ops::MakeAttentionPlan(batch.cu_seqlens)};
}

at::Tensor Decoder::Impl::Trunk(const DecoderBatch& batch, std::optional<BatchContext>* context,
                                std::vector<BlockSaved>* saved, std::vector<RoutingSums>* sums) {
  CheckBatch(batch, config);
  const bool recompute = options.activation_memory == ActivationMemory::kFullRecompute;
  blocks.front().Prefetch();
  at::Tensor x_TH;
  {
    const HeldBucket embedding(store, embedding_bucket);
    x_TH = ops::EmbeddingForward(batch.tokens_T, ViewEmbedding(config, embedding.flat()));
  }
  context->emplace(MakeContext(batch, x_TH.scalar_type()));
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (i + 1 < blocks.size()) {
      blocks[i + 1].Prefetch();
    } else {
      store.Prefetch(head_bucket);
    }
    RoutingSums* block_sums = nullptr;
    if (sums != nullptr && blocks[i].is_moe()) block_sums = &sums->emplace_back();
    BlockSaved* block_saved = saved != nullptr ? &saved->emplace_back() : nullptr;
    x_TH = blocks[i].Forward(**context, x_TH, recompute, block_saved, block_sums);
  }
  return x_TH;
}

Decoder::Impl::Routing Decoder::Impl::Route(const std::vector<RoutingSums>& sums,
                                            int64_t tokens) const {
  Routing out;
  if (sums.empty()) {
    out.copies_LE = at::zeros({0, config.num_experts}, at::kLong);
    return out;
  }
  std::vector<at::Tensor> copies, probs;
  for (const RoutingSums& layer : sums) {
    copies.push_back(layer.copies_E);
    probs.push_back(layer.prob_sums_E);
  }
  out.copies_LE = at::stack(copies).cpu();
  const at::Tensor probs_LE = at::stack(probs).cpu();
  switch (options.aux_loss) {
    case AuxLoss::kOff:
      break;
    case AuxLoss::kHf:
      out.aux = ops::HfAuxLoss(out.copies_LE, probs_LE, tokens);
      break;
    case AuxLoss::kMegatron:
      out.aux = ops::MegatronAuxLoss(out.copies_LE, probs_LE, tokens, config.top_k);
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
  std::optional<BatchContext> context;
  std::vector<BlockSaved> saved;
  std::vector<RoutingSums> sums;
  const at::Tensor x_TH = m.Trunk(batch, &context, &saved, &sums);
  Impl::Routing routing = m.Route(sums, batch.tokens_T.size(0));

  LossSums out;
  at::Tensor dx_TH = m.WithHead([&](const HeadParameters& head) {
    HeadParameters gradients =
        ViewHead(m.config, m.buckets[m.head_bucket], GradientToAddTo(m.store, m.head_bucket));
    if (m.config.tie_word_embeddings) {
      gradients.weight_VH = ViewEmbedding(m.config, GradientToAddTo(m.store, m.embedding_bucket));
    }
    const at::Tensor hidden_TH = ops::RmsNormForward(x_TH, head.norm_H, m.config.rms_norm_eps);
    at::Tensor dhidden_TH = at::empty(hidden_TH.sizes(), hidden_TH.options());
    const ops::CrossEntropySums ce = ops::LinearCrossEntropyWithGradient(
        hidden_TH, head.weight_VH, batch.targets_T, m.options.loss_chunk_tokens, loss_scale,
        dhidden_TH, gradients.weight_VH);
    out.ce_sum = ce.sum;
    out.supervised = ce.supervised;
    return ops::RmsNormBackward(dhidden_TH, x_TH, head.norm_H, m.config.rms_norm_eps,
                                gradients.norm_H);
  });
  m.store.GradientDone(m.head_bucket);

  int64_t moe_layer = static_cast<int64_t>(sums.size());
  for (size_t i = m.blocks.size(); i-- > 0;) {
    if (i > 0) m.blocks[i - 1].Prefetch();
    at::Tensor daux_E;
    if (m.blocks[i].is_moe()) {
      --moe_layer;
      if (routing.aux.dprob_LE.defined()) daux_E = routing.aux.dprob_LE[moe_layer] * aux_scale;
    }
    BlockSaved of_block = std::move(saved.back());
    saved.pop_back();
    dx_TH = m.blocks[i].Backward(*context, dx_TH, daux_E, std::move(of_block));
  }
  ops::EmbeddingBackward(dx_TH, batch.tokens_T, m.config.pad_token_id,
                         ViewEmbedding(m.config, GradientToAddTo(m.store, m.embedding_bucket)));
  m.store.GradientDone(m.embedding_bucket);
  out.aux = aux_scale * routing.aux.value;
  out.token_copies_LE = routing.copies_LE;
  return out;
}

LossSums Decoder::Evaluate(const DecoderBatch& batch) {
  Impl& m = *impl_;
  const c10::NoGradGuard no_grad;
  std::optional<BatchContext> context;
  std::vector<RoutingSums> sums;
  const at::Tensor x_TH = m.Trunk(batch, &context, nullptr, &sums);
  const Impl::Routing routing = m.Route(sums, batch.tokens_T.size(0));
  const ops::CrossEntropySums ce = m.WithHead([&](const HeadParameters& head) {
    return ops::LinearCrossEntropy(ops::RmsNormForward(x_TH, head.norm_H, m.config.rms_norm_eps),
                                   head.weight_VH, batch.targets_T, m.options.loss_chunk_tokens);
  });
  return {ce.sum, ce.supervised, routing.aux.value, routing.copies_LE};
}

at::Tensor Decoder::Logits(const DecoderBatch& batch) {
  Impl& m = *impl_;
  const c10::NoGradGuard no_grad;
  std::optional<BatchContext> context;
  const at::Tensor x_TH = m.Trunk(batch, &context, nullptr, nullptr);
  return m.WithHead([&](const HeadParameters& head) {
    return ops::LinearForward(ops::RmsNormForward(x_TH, head.norm_H, m.config.rms_norm_eps),
                              head.weight_VH, {});
  });
}

}  // namespace switchyard
