#include "worker/trainer/models/weight_names.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

// Appends slots back to back.
class BucketBuilder {
 public:
  BucketBuilder(std::string name, BucketKind kind, int64_t layer) {
    bucket_.name = std::move(name);
    bucket_.kind = kind;
    bucket_.layer = layer;
  }

  void Add(std::string name, std::vector<int64_t> shape) {
    TensorSlot slot;
    slot.name = std::move(name);
    slot.offset = bucket_.numel;
    slot.numel = 1;
    for (int64_t size : shape) slot.numel *= size;
    slot.shape = std::move(shape);
    bucket_.numel += slot.numel;
    bucket_.slots.push_back(std::move(slot));
  }

  BucketLayout Build() && { return std::move(bucket_); }

 private:
  BucketLayout bucket_;
};

BucketLayout DenseBucket(const ModelConfig& c, int64_t layer) {
  BucketBuilder bucket(absl::StrCat("layers.", layer, ".dense"), BucketKind::kDense, layer);
  const std::string p = absl::StrCat("model.layers.", layer, ".");
  const int64_t h = c.hidden_size;
  const int64_t q = c.num_heads * c.head_dim;
  const int64_t kv = c.num_kv_heads * c.head_dim;
  bucket.Add(p + "input_layernorm.weight", {h});
  bucket.Add(p + "self_attn.q_proj.weight", {q, h});
  bucket.Add(p + "self_attn.k_proj.weight", {kv, h});
  bucket.Add(p + "self_attn.v_proj.weight", {kv, h});
  if (c.attention_bias) {
    bucket.Add(p + "self_attn.q_proj.bias", {q});
    bucket.Add(p + "self_attn.k_proj.bias", {kv});
    bucket.Add(p + "self_attn.v_proj.bias", {kv});
  }
  bucket.Add(p + "self_attn.o_proj.weight", {h, q});
  if (c.attention_bias) bucket.Add(p + "self_attn.o_proj.bias", {h});
  bucket.Add(p + "self_attn.q_norm.weight", {c.head_dim});
  bucket.Add(p + "self_attn.k_norm.weight", {c.head_dim});
  bucket.Add(p + "post_attention_layernorm.weight", {h});
  if (c.IsMoeLayer(layer)) {
    bucket.Add(p + "mlp.gate.weight", {c.num_experts, h});
  } else {
    bucket.Add(p + "mlp.gate_proj.weight", {c.intermediate_size, h});
    bucket.Add(p + "mlp.up_proj.weight", {c.intermediate_size, h});
    bucket.Add(p + "mlp.down_proj.weight", {h, c.intermediate_size});
  }
  return std::move(bucket).Build();
}

BucketLayout ExpertsBucket(const ModelConfig& c, int64_t layer, int64_t begin, int64_t end) {
  BucketBuilder bucket(absl::StrCat("layers.", layer, ".experts"), BucketKind::kExpert, layer);
  const std::string p = absl::StrCat("model.layers.", layer, ".mlp.experts.");
  const int64_t h = c.hidden_size;
  const int64_t f = c.moe_intermediate_size;
  for (int64_t e = begin; e < end; ++e) {
    bucket.Add(absl::StrCat(p, e, ".gate_proj.weight"), {f, h});
    bucket.Add(absl::StrCat(p, e, ".up_proj.weight"), {f, h});
  }
  for (int64_t e = begin; e < end; ++e) {
    bucket.Add(absl::StrCat(p, e, ".down_proj.weight"), {h, f});
  }
  return std::move(bucket).Build();
}

}  // namespace

std::vector<BucketLayout> BuildBuckets(const ModelConfig& config, int64_t expert_begin,
                                       int64_t expert_end) {
  std::vector<BucketLayout> buckets;
  BucketBuilder embedding("embedding", BucketKind::kDense, -1);
  embedding.Add("model.embed_tokens.weight", {config.vocab_size, config.hidden_size});
  buckets.push_back(std::move(embedding).Build());
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    buckets.push_back(DenseBucket(config, layer));
    if (config.IsMoeLayer(layer)) {
      buckets.push_back(ExpertsBucket(config, layer, expert_begin, expert_end));
    }
  }
  BucketBuilder head("head", BucketKind::kDense, -1);
  head.Add("model.norm.weight", {config.hidden_size});
  if (!config.tie_word_embeddings) {
    head.Add("lm_head.weight", {config.vocab_size, config.hidden_size});
  }
  buckets.push_back(std::move(head).Build());
  return buckets;
}

int64_t CountParameters(const ModelConfig& config) {
  int64_t total = 0;
  for (const BucketLayout& bucket : BuildBuckets(config, 0, config.num_experts)) {
    total += bucket.numel;
  }
  return total;
}

int64_t CountActiveParameters(const ModelConfig& config) {
  const int64_t one_expert = 3 * config.hidden_size * config.moe_intermediate_size;
  return CountParameters(config) -
         config.NumMoeLayers() * (config.num_experts - config.top_k) * one_expert;
}

}  // namespace switchyard
