// The sizes and switches of one decoder, read from a Hugging Face config.json. Torch-free: prep,
// the coordinator's planner and the checkpoint code read it too.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_MODEL_CONFIG_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_MODEL_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/json.h"

namespace switchyard {

enum class RopeType { kDefault, kLinear, kYarn, kLlama3 };

// specs: Transformers' rope_parameters (v5) or rope_theta + rope_scaling (v4); both are read.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double partial_rotary_factor = 1.0;
  double factor = 1.0;
  int64_t original_max_position_embeddings = 0;
  // yarn
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 0.0;
  double mscale_all_dim = 0.0;
  double attention_factor = 0.0;  // 0: derived
  bool truncate = true;
  // llama3
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
};

struct ModelConfig {
  std::string model_type;  // "qwen3_moe"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // dense layers
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t moe_intermediate_size = 0;
  int64_t num_experts = 0;
  int64_t top_k = 0;
  bool norm_topk_prob = false;
  int64_t decoder_sparse_step = 1;
  std::vector<int64_t> mlp_only_layers;
  bool output_router_logits = false;
  double router_aux_loss_coef = 0.001;
  double rms_norm_eps = 1e-6;
  bool attention_bias = false;
  bool tie_word_embeddings = false;
  int64_t max_position_embeddings = 32768;
  int64_t sliding_window = 0;  // 0: none; else layers with index >= max_window_layers use it
  int64_t max_window_layers = 0;
  double initializer_range = 0.02;
  int64_t pad_token_id = -1;  // the embedding row whose gradient is zero; -1: none
  RopeConfig rope;
  std::string dtype;  // of the weights on disk, "bfloat16"; empty: not stated

  bool IsMoeLayer(int64_t layer) const;
  int64_t NumMoeLayers() const;
};

// Reads every key that changes the maths; a known key with a value we do not implement (another
// activation, attention dropout, a rope type) is an error that names it, never ignored.
// Errors: InvalidArgument: a missing or wrong key, sizes that do not fit together (both numbers).
//         Unimplemented: another model_type (the message lists those known).
absl::StatusOr<ModelConfig> ParseModelConfig(const Json& config);

// `folder`/config.json. Errors: also NotFound.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& folder);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_MODEL_CONFIG_H_
