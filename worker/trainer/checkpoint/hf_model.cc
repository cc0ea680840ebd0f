#include "worker/trainer/checkpoint/hf_model.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr char kEmbeddingName[] = "model.embed_tokens.weight";
constexpr char kHeadName[] = "lm_head.weight";

bool Exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// "3 tensors missing: 'a', 'b', 'c' and others".
std::string NamesText(const std::vector<std::string>& names, absl::string_view what) {
  std::vector<std::string> shown(names.begin(), names.begin() + std::min<size_t>(3, names.size()));
  return absl::StrCat(names.size(), names.size() == 1 ? " tensor " : " tensors ", what, ": '",
                      absl::StrJoin(shown, "', '"), "'", names.size() > 3 ? " and others" : "");
}

// Tensor name -> file name.
using WeightMap = absl::flat_hash_map<std::string, std::string>;

absl::StatusOr<WeightMap> ReadIndex(const std::string& path) {
  ASSIGN_OR_RETURN(const Json index, ReadJsonFile(path));
  const Json* map = index.is_object() ? JsonFind(index, "weight_map") : nullptr;
  if (map == nullptr || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no weight_map, or an empty one"));
  }
  WeightMap result;
  for (auto it = map->begin(); it != map->end(); ++it) {
    const std::string* file = it.value().get_ptr<const std::string*>();
    // A plain name only: an index must not reach outside its folder.
    if (file == nullptr || file->empty() || file->find('/') != std::string::npos ||
        file->find('\0') != std::string::npos || *file == "." || *file == "..") {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor '", it.key(), "': expected a file name, got ", DumpJson(it.value())));
    }
    if (!result.emplace(it.key(), *file).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor '", it.key(), "' is listed twice"));
    }
  }
  return result;
}

// The place of one expert's matrix in a fused tensor.
struct FusedPart {
  std::string name;     // "model.layers.0.mlp.experts.gate_up_proj"
  std::string experts;  // "model.layers.0.mlp.experts"
  int64_t expert = 0;
  int64_t part = 0;   // 0: gate or down, 1: up
  int64_t parts = 1;  // matrices of one expert in the fused tensor
};

// "<experts>.<e>.<gate|up|down>_proj.weight" -> its fused place; nothing for other names.
std::optional<FusedPart> FusedPlace(absl::string_view name) {
  std::vector<absl::string_view> words = absl::StrSplit(name, '.');
  if (words.size() < 4 || words.back() != "weight" || words[words.size() - 4] != "experts") {
    return std::nullopt;
  }
  FusedPart place;
  const absl::string_view projection = words[words.size() - 2];
  if (!absl::SimpleAtoi(words[words.size() - 3], &place.expert) || place.expert < 0) {
    return std::nullopt;
  }
  place.experts = absl::StrJoin(words.begin(), words.end() - 3, ".");
  if (projection == "down_proj") {
    place.name = place.experts + ".down_proj";
  } else if (projection == "gate_proj" || projection == "up_proj") {
    place.name = place.experts + ".gate_up_proj";
    place.part = projection == "up_proj" ? 1 : 0;
    place.parts = 2;
  } else {
    return std::nullopt;
  }
  return place;
}

// The steps of ResolveWeights share these.
class Resolver {
 public:
  Resolver(const HfModel& hf, const std::vector<BucketLayout>& model)
      : hf_(hf), model_(model), used_(hf.tensors.size()) {
    for (size_t i = 0; i < hf.tensors.size(); ++i) by_name_.emplace(hf.tensors[i].name, i);
    for (const BucketLayout& bucket : model) {
      for (const TensorSlot& slot : bucket.slots) {
        if (slot.name == kHeadName) has_head_ = true;
        if (const auto place = FusedPlace(slot.name)) {
          int64_t& count = num_experts_[place->experts];
          count = std::max(count, place->expert + 1);
        }
      }
    }
    source_.folder = hf.folder;
    source_.files = hf.files;
  }

  absl::StatusOr<WeightSource> Run() && {
    RETURN_IF_ERROR(PlaceTiedHead());
    for (const BucketLayout& bucket : model_) {
      for (const TensorSlot& slot : bucket.slots) RETURN_IF_ERROR(PlaceSlot(slot));
    }
    RETURN_IF_ERROR(CheckAllUsed());
    return std::move(source_);
  }

 private:
  std::string Where(const HfTensor& tensor) const {
    return absl::StrCat(hf_.folder, "/", hf_.files[tensor.file], ": tensor '", tensor.name, "'");
  }

  // Without a head of its own the model uses the embedding twice; older writers store both.
  absl::Status PlaceTiedHead() {
    const auto head = by_name_.find(kHeadName);
    if (has_head_ || head == by_name_.end()) return absl::OkStatus();
    const auto embedding = by_name_.find(kEmbeddingName);
    if (embedding == by_name_.end()) {
      by_name_.emplace(kEmbeddingName, head->second);
      return absl::OkStatus();
    }
    used_[head->second] = true;
    const HfTensor& a = hf_.tensors[head->second];
    const HfTensor& b = hf_.tensors[embedding->second];
    ASSIGN_OR_RETURN(const auto file_a,
                     SafetensorsFile::Open(hf_.folder + "/" + hf_.files[a.file]));
    ASSIGN_OR_RETURN(const auto file_b,
                     SafetensorsFile::Open(hf_.folder + "/" + hf_.files[b.file]));
    const TensorInfo* info_a = file_a->Find(a.name);
    const TensorInfo* info_b = file_b->Find(b.name);
    if (info_a == nullptr || info_b == nullptr || info_a->dtype != info_b->dtype ||
        info_a->shape != info_b->shape || file_a->Bytes(*info_a) != file_b->Bytes(*info_b)) {
      return absl::InvalidArgumentError(
          absl::StrCat(Where(a), " differs from '", kEmbeddingName,
                       "', but config.json says tie_word_embeddings: training would lose one of "
                       "them. Set tie_word_embeddings to false, or remove the wrong tensor"));
    }
    return absl::OkStatus();
  }

  absl::Status PlaceSlot(const TensorSlot& slot) {
    if (const auto it = by_name_.find(slot.name); it != by_name_.end()) {
      return Place(slot, it->second, slot.shape, 0);
    }
    if (const auto place = FusedPlace(slot.name)) {
      if (const auto it = by_name_.find(place->name); it != by_name_.end()) {
        std::vector<int64_t> fused_shape = {num_experts_[place->experts]};
        fused_shape.insert(fused_shape.end(), slot.shape.begin(), slot.shape.end());
        fused_shape[1] *= place->parts;
        return Place(slot, it->second, fused_shape,
                     (place->expert * place->parts + place->part) * slot.numel);
      }
    }
    missing_.push_back(slot.name);
    return absl::OkStatus();
  }

  // `slot` is elements [first, first + slot.numel) of tensor `index`, which must have `shape`.
  absl::Status Place(const TensorSlot& slot, size_t index, const std::vector<int64_t>& shape,
                     int64_t first) {
    const HfTensor& tensor = hf_.tensors[index];
    if (tensor.shape != shape) {
      return absl::InvalidArgumentError(absl::StrCat(Where(tensor), " has shape ",
                                                     ShapeText(tensor.shape),
                                                     ", config.json needs ", ShapeText(shape)));
    }
    if (tensor.dtype != TensorDtype::kF32 && tensor.dtype != TensorDtype::kBf16 &&
        tensor.dtype != TensorDtype::kF16) {
      return absl::InvalidArgumentError(absl::StrCat(Where(tensor), " has dtype ",
                                                     DtypeName(tensor.dtype),
                                                     ", supported are F32, BF16 and F16"));
    }
    TensorLocation location;
    location.file = tensor.file;
    location.dtype = tensor.dtype;
    location.offset = tensor.offset + static_cast<uint64_t>(first) * (DtypeBits(tensor.dtype) / 8);
    location.numel = slot.numel;
    source_.at[slot.name] = location;
    used_[index] = true;
    return absl::OkStatus();
  }

  absl::Status CheckAllUsed() const {
    std::vector<std::string> unexpected;
    for (size_t i = 0; i < hf_.tensors.size(); ++i) {
      // Buffers that old writers stored; computed from config.json.
      const bool buffer = absl::EndsWith(hf_.tensors[i].name, "rotary_emb.inv_freq");
      if (!used_[i] && !buffer) {
        unexpected.push_back(hf_.tensors[i].name);
      }
    }
    if (missing_.empty() && unexpected.empty()) return absl::OkStatus();
    std::string message = absl::StrCat("weights of ", hf_.folder, ": ");
    if (!missing_.empty()) absl::StrAppend(&message, NamesText(missing_, "missing"));
    if (!missing_.empty() && !unexpected.empty()) message += "; ";
    if (!unexpected.empty()) absl::StrAppend(&message, NamesText(unexpected, "unexpected"));
    return absl::InvalidArgumentError(message);
  }

  const HfModel& hf_;
  const std::vector<BucketLayout>& model_;
  bool has_head_ = false;
  absl::flat_hash_map<std::string, size_t> by_name_;
  absl::flat_hash_map<std::string, int64_t> num_experts_;  // by FusedPart::experts
  std::vector<bool> used_;                                 // by source tensor
  std::vector<std::string> missing_;
  WeightSource source_;
};

}  // namespace

absl::StatusOr<HfModel> OpenHfModel(const std::string& folder) {
  const bool has_index = Exists(absl::StrCat(folder, "/", kIndexFile));
  const bool has_single = Exists(absl::StrCat(folder, "/", kSingleFile));
  if (!has_index && !has_single) {
    return absl::NotFoundError(absl::StrCat("open model ", folder, ": neither ", kSingleFile,
                                            " nor ", kIndexFile, " is there"));
  }
  HfModel model;
  model.folder = folder;
  WeightMap map;
  if (has_index) {
    ASSIGN_OR_RETURN(map, ReadIndex(absl::StrCat(folder, "/", kIndexFile)));
    for (const auto& [name, file] : map) model.files.push_back(file);
    std::sort(model.files.begin(), model.files.end());
    model.files.erase(std::unique(model.files.begin(), model.files.end()), model.files.end());
    // Transformers would read the single file, vLLM the index: somebody gets the wrong weights.
    if (has_single && !std::binary_search(model.files.begin(), model.files.end(), kSingleFile)) {
      return absl::InvalidArgumentError(
          absl::StrCat("open model ", folder, ": both ", kSingleFile, " and ", kIndexFile,
                       " are there, and the index does not name it: remove the stale one"));
    }
  } else {
    model.files = {kSingleFile};
  }
  for (size_t f = 0; f < model.files.size(); ++f) {
    const std::string path = absl::StrCat(folder, "/", model.files[f]);
    const auto file = SafetensorsFile::Open(path);
    if (!file.ok()) {
      if (!absl::IsNotFound(file.status()) || !has_index) return file.status();
      return absl::NotFoundError(absl::StrCat(path, ": missing, but ", kIndexFile, " names it"));
    }
    for (const TensorInfo& info : (*file)->header().tensors) {
      if (has_index) {
        const auto it = map.find(info.name);
        if (it == map.end() || it->second != model.files[f]) {
          return absl::InvalidArgumentError(
              absl::StrCat(path, ": tensor '", info.name, "' is in the file, but ", kIndexFile,
                           it == map.end() ? " does not list it" : " places it in " + it->second));
        }
        map.erase(it);
      }
      HfTensor tensor;
      static_cast<TensorSpec&>(tensor) = info;
      tensor.file = static_cast<int>(f);
      tensor.offset = (*file)->header().data_offset + info.begin;
      model.tensors.push_back(std::move(tensor));
    }
  }
  if (!map.empty()) {
    const auto first = std::min_element(map.begin(), map.end());
    return absl::InvalidArgumentError(absl::StrCat(folder, "/", first->second, ": tensor '",
                                                   first->first, "' is missing, but ", kIndexFile,
                                                   " places it there (", map.size(), " such)"));
  }
  return model;
}

absl::StatusOr<WeightSource> ResolveWeights(const HfModel& hf,
                                            const std::vector<BucketLayout>& model) {
  return Resolver(hf, model).Run();
}

}  // namespace switchyard
