// A model from nothing: a byte-level BPE trained on a text and a random Qwen3-MoE, in Hugging Face
// format.
#ifndef SWITCHYARD_WORKER_PREP_INIT_MODEL_H_
#define SWITCHYARD_WORKER_PREP_INIT_MODEL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

// The defaults are the preset "quickstart": 15 million parameters, a third of which one token uses;
// made for two CPU cores.
struct InitModelOptions {
  std::string output;               // folder; must not hold a model yet
  std::vector<std::string> corpus;  // data files, folders or globs, as data sets
  int64_t vocab_size = 4096;        // upper bound: a small corpus has fewer merges to learn
  uint64_t seed = 42;
  int64_t hidden_size = 256;
  int64_t intermediate_size = 768;  // of dense layers, of which the preset has none
  int64_t moe_intermediate_size = 256;
  int64_t num_layers = 4;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t head_dim = 64;
  int64_t num_experts = 16;
  int64_t top_k = 4;
  bool tie_word_embeddings = true;
  int64_t max_position_embeddings = 4096;
};

struct InitModelResult {
  int64_t parameters = 0;
  int64_t active_parameters = 0;
  int64_t vocab_size = 0;
};

// Writes config.json, generation_config.json, model.safetensors (float32), tokenizer.json and
// tokenizer_config.json, whose ChatML template has {% generation %}. Linear, embedding, router and
// expert weights are normal(0, 0.02), norms 1. The same options and corpus give the same bytes.
// Errors: InvalidArgument: sizes that do not fit together; NotFound; AlreadyExists.
absl::StatusOr<InitModelResult> InitModel(const InitModelOptions& options);

// The chat template it writes: ChatML with tools, {% generation %} closing after <|im_end|>.
extern const char kChatMlTemplate[];

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_INIT_MODEL_H_
