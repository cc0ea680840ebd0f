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
#include "worker/trainer/checkpoint/tensor_files.h"
#include "worker/trainer/parallel/bucket_layout.h"

namespace switchyard {

// The buckets of a rank that holds experts [expert_begin, expert_end) of four: two MoE layers with
// a dense one between, of odd sizes, so that shards cut through tensors.
inline std::vector<BucketLayout> TinyModel(bool tied = false, int64_t expert_begin = 0,
                                           int64_t expert_end = 4) {
  std::vector<BucketLayout> buckets;
  const auto begin = [&](const std::string& name, BucketKind kind, int64_t layer) {
    buckets.emplace_back();
    buckets.back().name = name;
    buckets.back().kind = kind;
    buckets.back().layer = layer;
  };
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    TensorSlot slot;
    slot.name = name;
    slot.shape = shape;
    slot.offset = buckets.back().numel;
    slot.numel = 1;
    for (int64_t dim : shape) slot.numel *= dim;
    buckets.back().numel += slot.numel;
    buckets.back().slots.push_back(slot);
  };
  begin("embedding", BucketKind::kDense, -1);
  add("model.embed_tokens.weight", {13, 6});
  for (int64_t layer = 0; layer < 3; ++layer) {
    const std::string p = absl::StrCat("model.layers.", layer, ".");
    begin(absl::StrCat("layers.", layer, ".dense"), BucketKind::kDense, layer);
    add(p + "input_layernorm.weight", {6});
    add(p + "self_attn.q_proj.weight", {8, 6});
    add(p + "self_attn.q_norm.weight", {4});
    if (layer == 1) {
      add(p + "mlp.gate_proj.weight", {10, 6});
      add(p + "mlp.up_proj.weight", {10, 6});
      add(p + "mlp.down_proj.weight", {6, 10});
      continue;
    }
    add(p + "mlp.gate.weight", {4, 6});
    begin(absl::StrCat("layers.", layer, ".experts"), BucketKind::kExpert, layer);
    for (int64_t e = expert_begin; e < expert_end; ++e) {
      add(absl::StrCat(p, "mlp.experts.", e, ".gate_proj.weight"), {5, 6});
      add(absl::StrCat(p, "mlp.experts.", e, ".up_proj.weight"), {5, 6});
    }
    for (int64_t e = expert_begin; e < expert_end; ++e) {
      add(absl::StrCat(p, "mlp.experts.", e, ".down_proj.weight"), {6, 5});
    }
  }
  begin("head", BucketKind::kDense, -1);
  add("model.norm.weight", {6});
  if (!tied) add("lm_head.weight", {13, 6});
  return buckets;
}

inline std::vector<TensorSpec> SpecsOf(const std::vector<BucketLayout>& model, TensorDtype dtype) {
  std::vector<TensorSpec> specs;
  for (const BucketLayout& bucket : model) {
    for (const TensorSlot& slot : bucket.slots) specs.push_back({slot.name, dtype, slot.shape});
  }
  return specs;
}

// The model as a folder would hold it whose tensors all have this dtype.
inline TensorFiles SourceOf(const std::vector<BucketLayout>& model, TensorDtype dtype) {
  TensorFiles source;
  for (const BucketLayout& bucket : model) {
    for (const TensorSlot& slot : bucket.slots) source.at[slot.name] = {0, dtype, 0, slot.numel};
  }
  return source;
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
