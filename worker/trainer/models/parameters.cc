#include "worker/trainer/models/parameters.h"

#include <ATen/ATen.h>

#include <utility>

#include "absl/strings/match.h"

namespace switchyard {
namespace {

// Finds slots by the end of their published names.
class Views {
 public:
  Views(const BucketLayout& bucket, at::Tensor flat) : bucket_(bucket), flat_(std::move(flat)) {
    TORCH_CHECK(flat_.dim() == 1 && flat_.size(0) >= bucket.numel, "bug: bucket ", bucket.name,
                " has ", bucket.numel, " elements, its buffer ", flat_.sizes());
  }

  at::Tensor Get(absl::string_view suffix) const {
    return Span(suffix, suffix, Find(suffix).shape);
  }

  // Slots `first` to `last`, which lie back to back, as one tensor.
  at::Tensor Span(absl::string_view first, absl::string_view last, at::IntArrayRef sizes) const {
    const TensorSlot& begin = Find(first);
    const TensorSlot& end = Find(last);
    int64_t numel = 1;
    for (int64_t size : sizes) numel *= size;
    TORCH_CHECK(end.offset + end.numel - begin.offset == numel, "bug: ", begin.name, " to ",
                end.name, " holds ", end.offset + end.numel - begin.offset, " elements, not ",
                numel);
    return flat_.narrow(0, begin.offset, numel).view(sizes);
  }

 private:
  const TensorSlot& Find(absl::string_view suffix) const {
    for (const TensorSlot& slot : bucket_.slots) {
      if (absl::EndsWith(slot.name, suffix)) return slot;
    }
    TORCH_CHECK(false, "bug: bucket ", bucket_.name, " has no ", std::string(suffix));
  }

  const BucketLayout& bucket_;
  at::Tensor flat_;
};

}  // namespace

LayerParameters ViewLayer(const ModelConfig& config, const BucketLayout& bucket, at::Tensor flat) {
  const Views views(bucket, std::move(flat));
  const int64_t h = config.hidden_size;
  const int64_t p = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim;
  LayerParameters out;
  out.input_norm_H = views.Get(".input_layernorm.weight");
  out.attention.qkv_weight_PH = views.Span(".q_proj.weight", ".v_proj.weight", {p, h});
  if (config.attention_bias) {
    out.attention.qkv_bias_P = views.Span(".q_proj.bias", ".v_proj.bias", {p});
    out.attention.o_bias_H = views.Get(".o_proj.bias");
  }
  out.attention.q_norm_d = views.Get(".q_norm.weight");
  out.attention.k_norm_d = views.Get(".k_norm.weight");
  out.attention.o_weight_HQ = views.Get(".o_proj.weight");
  out.post_attention_norm_H = views.Get(".post_attention_layernorm.weight");
  if (config.IsMoeLayer(bucket.layer)) {
    out.router_EH = views.Get(".mlp.gate.weight");
  } else {
    out.mlp.gate_up_2FH = views.Span(".mlp.gate_proj.weight", ".mlp.up_proj.weight",
                                     {2 * config.intermediate_size, h});
    out.mlp.down_HF = views.Get(".mlp.down_proj.weight");
  }
  return out;
}

ExpertParameters ViewExperts(const ModelConfig& config, const BucketLayout& bucket,
                             at::Tensor flat) {
  const int64_t h = config.hidden_size;
  const int64_t f = config.moe_intermediate_size;
  const int64_t experts = bucket.numel / (3 * h * f);
  TORCH_CHECK(experts * 3 * h * f == bucket.numel && flat.size(0) >= bucket.numel, "bug: bucket ",
              bucket.name, " of ", bucket.numel, " elements, buffer ", flat.sizes());
  ExpertParameters out;
  out.gate_up_E2FH = flat.narrow(0, 0, experts * 2 * f * h).view({experts, 2 * f, h});
  out.down_EHF = flat.narrow(0, experts * 2 * f * h, experts * h * f).view({experts, h, f});
  return out;
}

HeadParameters ViewHead(const ModelConfig& config, const BucketLayout& bucket, at::Tensor flat) {
  const Views views(bucket, std::move(flat));
  HeadParameters out;
  out.norm_H = views.Get("model.norm.weight");
  if (!config.tie_word_embeddings) out.weight_VH = views.Get("lm_head.weight");
  return out;
}

at::Tensor ViewEmbedding(const ModelConfig& config, at::Tensor flat) {
  return flat.narrow(0, 0, config.vocab_size * config.hidden_size)
      .view({config.vocab_size, config.hidden_size});
}

}  // namespace switchyard
