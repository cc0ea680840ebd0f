// A small checkpoint on the disk, as the trainer writes one: two shards with their index, the
// optimizer's state, the manifest.
#ifndef SWITCHYARD_CLIENT_CHECKPOINT_TESTING_H_
#define SWITCHYARD_CLIENT_CHECKPOINT_TESTING_H_

#include <stdlib.h>
#include <string.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_matchers.h"
#include "client/tensor_values.h"
#include "gtest/gtest.h"
#include "worker/trainer/checkpoint/manifest.h"
#include "worker/trainer/checkpoint/safetensors.h"
#include "worker/trainer/models/model_config.h"
#include "worker/trainer/models/weight_names.h"

namespace switchyard {

inline constexpr char kTinyConfig[] = R"({
  "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "float32",
  "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
  "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "moe_intermediate_size": 6,
  "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": true, "hidden_act": "silu",
  "max_position_embeddings": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
  "tie_word_embeddings": false
})";

using Bytes = std::map<std::string, std::string>;  // file -> content

// `value` of the i-th element of a tensor.
inline std::string MakeTensors(std::vector<TensorSpec> specs,
                               const std::function<float(const std::string&, size_t)>& value) {
  const auto layout = LayOutSafetensors(std::move(specs));
  EXPECT_THAT(layout, IsOk());
  std::string bytes = layout->head;
  for (const TensorInfo& tensor : layout->tensors) {
    std::string floats;
    const size_t count = (tensor.end - tensor.begin) * 8 / DtypeBits(tensor.dtype);
    for (size_t i = 0; i < count; ++i) {
      const float x = value(tensor.name, i);
      floats.append(reinterpret_cast<const char*>(&x), 4);
    }
    if (IsFloating(tensor.dtype)) {
      ConvertElements(floats, TensorDtype::kF32, tensor.dtype, bytes);
    } else {
      bytes.append(tensor.end - tensor.begin, '\0');
    }
  }
  return bytes;
}

inline float TinyValue(const std::string& name, size_t i) {
  return 0.01f * static_cast<float>(Crc32c(name) % 100) + 0.001f * static_cast<float>(i);
}

inline std::vector<TensorSpec> TinyTensors(TensorDtype dtype) {
  const auto config = ParseModelConfig(*ParseJson(kTinyConfig, "config"));
  EXPECT_THAT(config, IsOk());
  std::vector<TensorSpec> specs;
  for (const BucketLayout& bucket : BuildBuckets(*config, 0, config->num_experts)) {
    for (const TensorSlot& slot : bucket.slots) specs.push_back({slot.name, dtype, slot.shape});
  }
  return specs;
}

// Adds the manifest for what is there.
inline void AddManifest(Bytes& files) {
  Manifest manifest;
  manifest.job = "projects/default/jobs/j1";
  manifest.job_uid = "uid";
  manifest.attempt = 1;
  manifest.step = 6;
  files.erase(kManifestName);
  for (const auto& [name, bytes] : files) {
    manifest.files.push_back({name, static_cast<int64_t>(bytes.size()), Crc32c(bytes)});
  }
  files[kManifestName] = DumpManifest(manifest);
}

inline Bytes TinyCheckpoint(TensorDtype dtype = TensorDtype::kF32) {
  Bytes files;
  std::vector<TensorSpec> specs = TinyTensors(dtype);
  Json map = Json::object();
  std::vector<TensorSpec> halves[2], optimizer;
  for (size_t i = 0; i < specs.size(); ++i) {
    const size_t half = i * 2 / specs.size();
    halves[half].push_back(specs[i]);
    map[specs[i].name] = absl::StrCat("model-0000", half + 1, "-of-00002.safetensors");
    for (const char* suffix : {".exp_avg", ".exp_avg_sq"}) {
      optimizer.push_back({specs[i].name + suffix, TensorDtype::kF32, specs[i].shape});
    }
  }
  for (size_t half : {0, 1}) {
    files[absl::StrCat("model-0000", half + 1, "-of-00002.safetensors")] =
        MakeTensors(halves[half], TinyValue);
  }
  files["model.safetensors.index.json"] = DumpJson(
      Json{{"metadata", {{"total_parameters", 7}, {"total_size", 8}}}, {"weight_map", map}}, 2);
  files["config.json"] = kTinyConfig;
  files["tokenizer.json"] = "{}";
  files["switchyard/state.json"] = "{}";
  files["switchyard/optimizer-00001-of-00001.safetensors"] = MakeTensors(optimizer, TinyValue);
  AddManifest(files);
  return files;
}

// A folder of its own, removed at the end.
class TempTree {
 public:
  TempTree() {
    std::string pattern = testing::TempDir() + "checkpoint_test.XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempTree() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  // Writes the files into the folder `name`, which was not there, and answers its path.
  std::string Put(const std::string& name, const Bytes& files) const {
    const std::string folder = absl::StrCat(path_, "/", name);
    for (const auto& [file, bytes] : files) {
      const std::string path = absl::StrCat(folder, "/", file);
      EXPECT_THAT(MakeFolders(path.substr(0, path.rfind('/'))), IsOk());
      EXPECT_THAT(ReplaceFile(path, bytes), IsOk());
    }
    return folder;
  }
  static Bytes Get(const std::string& folder) {
    Bytes files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      if (entry.is_directory()) continue;
      files[entry.path().string().substr(folder.size() + 1)] =
          ReadFile(entry.path().string()).value_or("");
    }
    return files;
  }

 private:
  std::string path_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_CHECKPOINT_TESTING_H_
