// A small model's buckets and files for the tests of this folder.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_TEST_MODEL_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_TEST_MODEL_H_

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/checkpoint/safetensors.h"
#include "worker/trainer/models/weight_names.h"

namespace switchyard {

// Odd sizes, so that shards cut through tensors.
inline ModelConfig TinyConfig(bool tied = false) {
  ModelConfig config;
  config.model_type = "qwen3_moe";
  config.vocab_size = 13;
  config.hidden_size = 6;
  config.intermediate_size = 10;
  config.num_layers = 3;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 4;
  config.moe_intermediate_size = 5;
  config.num_experts = 4;
  config.top_k = 2;
  config.mlp_only_layers = {1};
  config.tie_word_embeddings = tied;
  return config;
}

inline std::vector<BucketLayout> TinyModel(bool tied = false) {
  return BuildBuckets(TinyConfig(tied), 0, 4);
}

inline std::vector<TensorSpec> SpecsOf(const std::vector<BucketLayout>& model, TensorDtype dtype) {
  std::vector<TensorSpec> specs;
  for (const BucketLayout& bucket : model) {
    for (const TensorSlot& slot : bucket.slots) specs.push_back({slot.name, dtype, slot.shape});
  }
  return specs;
}

// A fresh folder.
inline std::string TestFolder(const std::string& name) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/", name, ".XXXXXX");
  std::string path = folder;
  EXPECT_NE(::mkdtemp(path.data()), nullptr);
  return path;
}

// A file of these tensors whose data bytes are 0, 1, 2, ... (mod 251).
inline void WriteSafetensors(const std::string& path, const std::vector<TensorSpec>& specs) {
  const auto layout = LayOutSafetensors(specs);
  ASSERT_THAT(layout, IsOk());
  std::string file = layout->head;
  for (uint64_t i = 0; file.size() < layout->file_bytes; ++i) {
    file.push_back(static_cast<char>(i % 251));
  }
  ASSERT_THAT(ReplaceFile(path, file), IsOk());
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_TEST_MODEL_H_
