// Bytes that a model's forward keeps, counted.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_SAVED_BYTES_TEST_SUPPORT_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_SAVED_BYTES_TEST_SUPPORT_H_

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <vector>

#include "worker/trainer/models/block.h"
#include "worker/trainer/models/models_test_support.h"
#include "worker/trainer/models/rope_frequencies.h"
#include "worker/trainer/parallel/local_dispatcher.h"

namespace switchyard {

inline int64_t Bytes(const std::vector<at::Tensor>& tensors) {
  int64_t sum = 0;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined()) sum += static_cast<int64_t>(tensor.nbytes());
  }
  return sum;
}

// Everything that `saved` keeps alive. The plan holds the same permutation as the choice.
inline int64_t SavedBytes(const BlockSaved& saved) {
  const MoeSaved& moe = saved.moe;
  return Bytes({saved.x_TH, saved.middle_TH, saved.attention.qkv_TP, saved.attention.core.out_TNd,
                saved.attention.core.log_sum_exp_TN, saved.mlp.z_T2F, moe.weights_N, moe.z_N2F,
                moe.choice.logits_TE, moe.choice.ids_TK, moe.choice.weights_TK,
                moe.choice.by_expert.row_of_TK, moe.choice.by_expert.offsets_E1});
}

// What the blocks keep of one micro-batch.
inline int64_t KeptByAllBlocks(const ModelConfig& config, bool recompute, at::ScalarType type,
                               int64_t tokens, at::Device device) {
  const c10::NoGradGuard no_grad;
  LocalParameterStore store(BuildBuckets(config, 0, config.num_experts), type, device);
  DrawWeights(8, &store);
  LocalDispatcher dispatcher(config.num_experts);
  const DecoderBatch batch = DrawBatch(1, {tokens}, config.vocab_size);
  const RopeFrequencies rope = ComputeRopeFrequencies(config.rope, config.head_dim);
  const ops::RopeTable table =
      ops::MakeRopeTable(rope.inverse_r, rope.attention_scale, tokens, type, device);
  const BatchContext context = {
      config,
      dispatcher,
      /*router_fp32=*/false,
      /*prob_sums=*/false,
      ops::MakeRopeAngles(table, batch.positions_T.to(at::kInt).to(device), type),
      ops::MakeAttentionPlan(batch.cu_seqlens, device)};
  at::Tensor x = at::randn({tokens, config.hidden_size}).to(type).to(device);
  int64_t kept = 0;
  int next = 1;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    BlockBuckets buckets;
    buckets.dense = next++;
    buckets.dense_layout = &store.buckets()[buckets.dense];
    if (config.IsMoeLayer(layer)) {
      buckets.experts = next++;
      buckets.experts_layout = &store.buckets()[buckets.experts];
    }
    BlockSaved saved;
    x = Block(layer, buckets, store).Forward(context, x, recompute, &saved, nullptr);
    kept += SavedBytes(saved);
  }
  return kept;
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_SAVED_BYTES_TEST_SUPPORT_H_
