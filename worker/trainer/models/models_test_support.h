// Small models for the tests of this folder.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_MODELS_TEST_SUPPORT_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_MODELS_TEST_SUPPORT_H_

#include <ATen/ATen.h>

#include <vector>

#include "absl/strings/match.h"
#include "worker/trainer/models/decoder.h"
#include "worker/trainer/models/weight_names.h"
#include "worker/trainer/parallel/local_parameter_store.h"

namespace switchyard {

// No two sizes are equal, so that a transposed matrix does not fit.
inline ModelConfig ToyConfig() {
  ModelConfig c;
  c.model_type = "qwen3_moe";
  c.vocab_size = 29;
  c.hidden_size = 12;
  c.intermediate_size = 18;
  c.num_layers = 3;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 8;
  c.moe_intermediate_size = 10;
  c.num_experts = 5;
  c.top_k = 2;
  c.norm_topk_prob = true;
  c.mlp_only_layers = {1};
  return c;
}

// Norm weights about 1, routers wide enough to choose clearly.
inline void DrawWeights(uint64_t seed, LocalParameterStore* store) {
  at::manual_seed(seed);
  for (size_t b = 0; b < store->buckets().size(); ++b) {
    at::Tensor flat = store->Acquire(static_cast<int>(b));
    for (const TensorSlot& slot : store->buckets()[b].slots) {
      at::Tensor values = at::randn({slot.numel}, at::kDouble) * 0.3;
      if (absl::EndsWith(slot.name, "norm.weight")) values = values * 0.3 + 1.0;
      flat.narrow(0, slot.offset, slot.numel).copy_(values);
    }
    store->Release(static_cast<int>(b));
  }
}

// Documents of the given lengths; about two thirds of the targets are supervised.
inline DecoderBatch DrawBatch(uint64_t seed, const std::vector<int64_t>& lengths,
                              int64_t vocab_size) {
  at::manual_seed(seed);
  DecoderBatch batch;
  batch.cu_seqlens = {0};
  std::vector<at::Tensor> positions = {at::empty({0}, at::kLong)};
  for (int64_t length : lengths) {
    positions.push_back(at::arange(length, at::kLong));
    batch.cu_seqlens.push_back(batch.cu_seqlens.back() + length);
  }
  const int64_t tokens = batch.cu_seqlens.back();
  batch.tokens_T = at::randint(0, vocab_size, {tokens}, at::kLong);
  batch.targets_T = at::randint(0, vocab_size, {tokens}, at::kLong)
                        .masked_fill(at::rand({tokens}, at::kDouble) < 0.33, -100);
  batch.positions_T = at::cat(positions);
  return batch;
}

inline double Value(const at::Tensor& scalar) { return scalar.item<double>(); }

inline std::vector<at::Tensor> Gradients(LocalParameterStore& store) {
  std::vector<at::Tensor> out;
  for (size_t b = 0; b < store.buckets().size(); ++b) {
    out.push_back(store.gradient(static_cast<int>(b)).clone());
  }
  return out;
}

// max |a - b| / max |b|; 0 when they are equal.
inline double RelativeError(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0 && b.numel() == 0) return 0;
  const double difference = (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
  return difference == 0 ? 0 : difference / b.to(at::kDouble).abs().max().item<double>();
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_MODELS_TEST_SUPPORT_H_
