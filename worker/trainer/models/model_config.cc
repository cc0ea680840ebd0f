#include "worker/trainer/models/model_config.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

absl::Status Invalid(absl::string_view key, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("config.json: '", key, "': ", what));
}

absl::Status InConfig(const absl::Status& status) {
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", status.message()));
}

// A key without which the sizes are not known. Transformers would fall back to some other model's
// size, which is never what a file without the key means.
absl::StatusOr<int64_t> Size(const Json& config, absl::string_view key) {
  absl::StatusOr<int64_t> value = JsonGet<int64_t>(config, key);
  if (absl::IsNotFound(value.status())) return Invalid(key, "missing");
  if (!value.ok()) return InConfig(value.status());
  if (*value < 1) return Invalid(key, absl::StrCat("expected at least 1, got ", *value));
  return value;
}

template <typename T>
absl::StatusOr<T> Optional(const Json& config, absl::string_view key, T fallback) {
  absl::StatusOr<T> value = JsonGetOr<T>(config, key, fallback);
  if (!value.ok()) return InConfig(value.status());
  return value;
}

// The first of `keys` that is there. Transformers renamed some keys and reads all spellings.
absl::string_view FirstPresent(const Json& config, std::initializer_list<absl::string_view> keys) {
  for (absl::string_view key : keys) {
    if (JsonFind(config, key) != nullptr) return key;
  }
  return *keys.begin();
}

absl::Status ReadYarn(const Json& dict, int64_t max_position_embeddings, RopeConfig* rope) {
  ASSIGN_OR_RETURN(rope->factor,
                   Optional(dict, "factor",
                            static_cast<double>(max_position_embeddings) /
                                static_cast<double>(rope->original_max_position_embeddings)));
  ASSIGN_OR_RETURN(rope->beta_fast, Optional(dict, "beta_fast", 32.0));
  ASSIGN_OR_RETURN(rope->beta_slow, Optional(dict, "beta_slow", 1.0));
  // Zero means "not given" to Transformers too.
  if (rope->beta_fast == 0) rope->beta_fast = 32.0;
  if (rope->beta_slow == 0) rope->beta_slow = 1.0;
  ASSIGN_OR_RETURN(rope->mscale, Optional(dict, "mscale", 0.0));
  ASSIGN_OR_RETURN(rope->mscale_all_dim, Optional(dict, "mscale_all_dim", 0.0));
  ASSIGN_OR_RETURN(rope->attention_factor, Optional(dict, "attention_factor", 0.0));
  if (rope->attention_factor < 0 ||
      (rope->attention_factor == 0 && JsonFind(dict, "attention_factor") != nullptr)) {
    return Invalid("attention_factor",
                   absl::StrCat("expected more than 0, got ", rope->attention_factor));
  }
  ASSIGN_OR_RETURN(rope->truncate, Optional(dict, "truncate", true));
  return absl::OkStatus();
}

absl::Status ReadLlama3(const Json& dict, RopeConfig* rope) {
  for (auto [key, out] : {std::pair<const char*, double*>("factor", &rope->factor),
                          {"low_freq_factor", &rope->low_freq_factor},
                          {"high_freq_factor", &rope->high_freq_factor}}) {
    absl::StatusOr<double> value = JsonGet<double>(dict, key);
    if (!value.ok()) return InConfig(value.status());
    *out = *value;
  }
  if (rope->high_freq_factor <= rope->low_freq_factor) {
    return Invalid("high_freq_factor",
                   absl::StrCat("expected more than low_freq_factor ", rope->low_freq_factor,
                                ", got ", rope->high_freq_factor));
  }
  return absl::OkStatus();
}

absl::StatusOr<RopeConfig> ReadRope(const Json& config, int64_t max_position_embeddings) {
  RopeConfig rope;
  // Transformers prefers a non-empty rope_scaling when a file has both.
  const Json empty = Json::object();
  const Json* dict = JsonFind(config, "rope_scaling");
  if (dict == nullptr || dict->empty()) dict = JsonFind(config, "rope_parameters");
  if (dict == nullptr) dict = &empty;
  if (!dict->is_object()) return Invalid("rope_parameters", "expected an object");

  ASSIGN_OR_RETURN(double top_theta, Optional(config, "rope_theta", 10000.0));
  ASSIGN_OR_RETURN(rope.theta, Optional(*dict, "rope_theta", top_theta));
  if (rope.theta <= 0) return Invalid("rope_theta", absl::StrCat("expected > 0, got ", rope.theta));
  ASSIGN_OR_RETURN(double top_partial, Optional(config, "partial_rotary_factor", 1.0));
  ASSIGN_OR_RETURN(rope.partial_rotary_factor,
                   Optional(*dict, "partial_rotary_factor", top_partial));
  ASSIGN_OR_RETURN(int64_t in_dict, Optional<int64_t>(*dict, "original_max_position_embeddings",
                                                      max_position_embeddings));
  ASSIGN_OR_RETURN(rope.original_max_position_embeddings,
                   Optional<int64_t>(config, "original_max_position_embeddings", in_dict));
  if (rope.original_max_position_embeddings < 1) {
    return Invalid("original_max_position_embeddings", "expected at least 1");
  }

  ASSIGN_OR_RETURN(std::string old_spelling, Optional<std::string>(*dict, "type", "default"));
  ASSIGN_OR_RETURN(std::string type, Optional(*dict, "rope_type", old_spelling));
  if (type == "default") {
    rope.type = RopeType::kDefault;
  } else if (type == "linear") {
    rope.type = RopeType::kLinear;
    absl::StatusOr<double> factor = JsonGet<double>(*dict, "factor");
    if (!factor.ok()) return InConfig(factor.status());
    rope.factor = *factor;
  } else if (type == "yarn") {
    rope.type = RopeType::kYarn;
    RETURN_IF_ERROR(ReadYarn(*dict, max_position_embeddings, &rope));
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
    RETURN_IF_ERROR(ReadLlama3(*dict, &rope));
  } else {
    return Invalid("rope_type", absl::StrCat("'", type,
                                             "' is not implemented; known are default, linear, "
                                             "yarn, llama3"));
  }
  if (rope.factor <= 0) return Invalid("factor", absl::StrCat("expected > 0, got ", rope.factor));
  if (JsonFind(*dict, "mrope_section") != nullptr) {
    return Invalid("mrope_section", "multimodal rope is not implemented");
  }
  return rope;
}

// Keys whose other values change the maths.
absl::Status RefuseUnsupported(const Json& config) {
  ASSIGN_OR_RETURN(std::string act, Optional<std::string>(config, "hidden_act", "silu"));
  if (act != "silu" && act != "swish") {
    return Invalid("hidden_act", absl::StrCat("'", act, "' is not implemented; known is silu"));
  }
  ASSIGN_OR_RETURN(double dropout, Optional(config, "attention_dropout", 0.0));
  if (dropout != 0) {
    return Invalid("attention_dropout", absl::StrCat(dropout, " is not implemented; only 0 is"));
  }
  if (const Json* quantization = JsonFind(config, "quantization_config");
      quantization != nullptr && !quantization->empty()) {
    return Invalid("quantization_config", "quantised weights are not implemented");
  }
  if (JsonFind(config, "layer_types") != nullptr) {
    absl::StatusOr<std::vector<std::string>> types =
        JsonGet<std::vector<std::string>>(config, "layer_types");
    if (!types.ok()) return InConfig(types.status());
    for (const std::string& type : *types) {
      if (type != "full_attention") {
        return Invalid("layer_types",
                       absl::StrCat("'", type, "' is not implemented; known is full_attention"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReadDtype(const Json& config, ModelConfig* out) {
  const absl::string_view key = FirstPresent(config, {"dtype", "torch_dtype"});
  ASSIGN_OR_RETURN(std::string text, Optional<std::string>(config, key, ""));
  out->dtype = std::string(absl::StripPrefix(text, "torch."));
  for (absl::string_view known : {"", "float32", "bfloat16", "float16"}) {
    if (out->dtype == known) return absl::OkStatus();
  }
  return Invalid(key, absl::StrCat("'", text, "' is not float32, bfloat16 or float16"));
}

absl::Status ReadExperts(const Json& config, ModelConfig* out) {
  const absl::string_view experts_key = FirstPresent(config, {"num_experts", "num_local_experts"});
  if (JsonFind(config, "num_experts") && JsonFind(config, "num_local_experts")) {
    ASSIGN_OR_RETURN(int64_t a, Optional<int64_t>(config, "num_experts", 0));
    ASSIGN_OR_RETURN(int64_t b, Optional<int64_t>(config, "num_local_experts", 0));
    if (a != b) {
      return Invalid("num_experts", absl::StrCat(a, " contradicts num_local_experts ", b));
    }
  }
  absl::StatusOr<int64_t> experts = JsonGet<int64_t>(config, experts_key);
  if (absl::IsNotFound(experts.status())) return Invalid(experts_key, "missing");
  if (!experts.ok()) return InConfig(experts.status());
  if (*experts < 0) return Invalid(experts_key, absl::StrCat("expected >= 0, got ", *experts));
  out->num_experts = *experts;

  ASSIGN_OR_RETURN(out->decoder_sparse_step, Optional<int64_t>(config, "decoder_sparse_step", 1));
  if (out->decoder_sparse_step < 1) {
    return Invalid("decoder_sparse_step",
                   absl::StrCat("expected at least 1, got ", out->decoder_sparse_step));
  }
  ASSIGN_OR_RETURN(out->mlp_only_layers,
                   Optional<std::vector<int64_t>>(config, "mlp_only_layers", {}));
  ASSIGN_OR_RETURN(out->norm_topk_prob, Optional(config, "norm_topk_prob", false));
  ASSIGN_OR_RETURN(out->output_router_logits, Optional(config, "output_router_logits", false));
  ASSIGN_OR_RETURN(out->router_aux_loss_coef, Optional(config, "router_aux_loss_coef", 0.001));
  if (out->NumMoeLayers() == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(out->moe_intermediate_size, Size(config, "moe_intermediate_size"));
  ASSIGN_OR_RETURN(out->top_k, Size(config, "num_experts_per_tok"));
  if (out->top_k > out->num_experts) {
    return Invalid("num_experts_per_tok",
                   absl::StrCat(out->top_k, " is more than the ", out->num_experts, " experts"));
  }
  return absl::OkStatus();
}

absl::Status ReadAttention(const Json& config, ModelConfig* out) {
  ASSIGN_OR_RETURN(out->num_heads, Size(config, "num_attention_heads"));
  ASSIGN_OR_RETURN(out->num_kv_heads, Size(config, "num_key_value_heads"));
  if (out->num_heads % out->num_kv_heads != 0) {
    return Invalid("num_attention_heads",
                   absl::StrCat(out->num_heads, " is not a multiple of num_key_value_heads ",
                                out->num_kv_heads));
  }
  ASSIGN_OR_RETURN(out->head_dim,
                   Optional<int64_t>(config, "head_dim", out->hidden_size / out->num_heads));
  if (out->head_dim < 2 || out->head_dim % 2 != 0) {
    return Invalid("head_dim",
                   absl::StrCat("expected an even number of at least 2, got ", out->head_dim));
  }
  ASSIGN_OR_RETURN(out->attention_bias, Optional(config, "attention_bias", false));
  ASSIGN_OR_RETURN(out->max_position_embeddings,
                   Optional<int64_t>(config, "max_position_embeddings", 32768));
  if (out->max_position_embeddings < 1) {
    return Invalid("max_position_embeddings", "expected at least 1");
  }
  ASSIGN_OR_RETURN(bool windows, Optional(config, "use_sliding_window", false));
  if (windows) {
    ASSIGN_OR_RETURN(out->sliding_window, Optional<int64_t>(config, "sliding_window", 4096));
    if (out->sliding_window < 1) {
      return Invalid("sliding_window",
                     absl::StrCat("expected at least 1, got ", out->sliding_window));
    }
    // Transformers' Qwen3-MoE gives the window to every layer, whatever max_window_layers says.
    out->max_window_layers = 0;
  }
  ASSIGN_OR_RETURN(out->rope, ReadRope(config, out->max_position_embeddings));
  if (out->rope.partial_rotary_factor != 1.0) {
    return Invalid("partial_rotary_factor",
                   absl::StrCat(out->rope.partial_rotary_factor, " is not implemented for ",
                                out->model_type, "; only 1 is"));
  }
  return absl::OkStatus();
}

}  // namespace

bool ModelConfig::IsMoeLayer(int64_t layer) const {
  if (num_experts == 0 || (layer + 1) % decoder_sparse_step != 0) return false;
  return std::find(mlp_only_layers.begin(), mlp_only_layers.end(), layer) == mlp_only_layers.end();
}

int64_t ModelConfig::NumMoeLayers() const {
  int64_t count = 0;
  for (int64_t layer = 0; layer < num_layers; ++layer) count += IsMoeLayer(layer) ? 1 : 0;
  return count;
}

absl::StatusOr<ModelConfig> ParseModelConfig(const Json& config) {
  if (!config.is_object()) return absl::InvalidArgumentError("config.json: expected an object");
  ModelConfig out;
  absl::StatusOr<std::string> model_type = JsonGet<std::string>(config, "model_type");
  if (absl::IsNotFound(model_type.status())) return Invalid("model_type", "missing");
  if (!model_type.ok()) return InConfig(model_type.status());
  out.model_type = *model_type;
  if (out.model_type != "qwen3_moe") {
    return absl::UnimplementedError(absl::StrCat("config.json: 'model_type': '", out.model_type,
                                                 "' is not implemented; known is qwen3_moe"));
  }
  RETURN_IF_ERROR(RefuseUnsupported(config));
  ASSIGN_OR_RETURN(out.vocab_size, Size(config, "vocab_size"));
  ASSIGN_OR_RETURN(out.hidden_size, Size(config, "hidden_size"));
  ASSIGN_OR_RETURN(out.num_layers, Size(config, "num_hidden_layers"));
  RETURN_IF_ERROR(ReadAttention(config, &out));
  RETURN_IF_ERROR(ReadExperts(config, &out));
  if (out.NumMoeLayers() < out.num_layers) {
    ASSIGN_OR_RETURN(out.intermediate_size, Size(config, "intermediate_size"));
  } else {
    ASSIGN_OR_RETURN(out.intermediate_size, Optional<int64_t>(config, "intermediate_size", 0));
  }
  ASSIGN_OR_RETURN(out.rms_norm_eps, Optional(config, "rms_norm_eps", 1e-6));
  ASSIGN_OR_RETURN(out.tie_word_embeddings, Optional(config, "tie_word_embeddings", false));
  ASSIGN_OR_RETURN(out.initializer_range, Optional(config, "initializer_range", 0.02));
  if (JsonFind(config, "pad_token_id") != nullptr) {
    ASSIGN_OR_RETURN(int64_t pad, Optional<int64_t>(config, "pad_token_id", -1));
    if (pad < -out.vocab_size || pad >= out.vocab_size) {
      return Invalid("pad_token_id", absl::StrCat(pad, " is outside the ", out.vocab_size,
                                                  " ids of the vocabulary"));
    }
    // torch's Embedding counts a negative padding_idx from the end.
    out.pad_token_id = pad < 0 ? pad + out.vocab_size : pad;
  }
  RETURN_IF_ERROR(ReadDtype(config, &out));
  return out;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/config.json");
  ASSIGN_OR_RETURN(Json json, ReadJsonFile(path));
  absl::StatusOr<ModelConfig> config = ParseModelConfig(json);
  if (config.ok()) return config;
  return absl::Status(config.status().code(), absl::StrCat(folder, "/", config.status().message()));
}

}  // namespace switchyard
