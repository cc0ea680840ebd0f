#include "worker/trainer/checkpoint/output_plan.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

constexpr char kOptimizerPrefix[] = "switchyard/optimizer-";

int64_t BytesOf(const TensorSpec& tensor) {
  int64_t bytes = DtypeBits(tensor.dtype) / 8;
  for (int64_t dim : tensor.shape) bytes *= dim;
  return bytes;
}

// Places each shard in the file that `name_of(number from 1, count)` names.
template <typename NameOf>
absl::StatusOr<FileSet> LayOutFiles(const std::vector<std::vector<TensorSpec>>& shards,
                                    const NameOf& name_of) {
  FileSet set;
  for (size_t i = 0; i < shards.size(); ++i) {
    set.files.files.push_back(name_of(i + 1, shards.size()));
    ASSIGN_OR_RETURN(SafetensorsLayout layout, LayOutSafetensors(shards[i]));
    for (const TensorInfo& tensor : layout.tensors) {
      TensorLocation location;
      location.file = static_cast<int>(i);
      location.dtype = tensor.dtype;
      location.offset = layout.head.size() + tensor.begin;
      location.numel = BytesOf(tensor) / (DtypeBits(tensor.dtype) / 8);
      set.files.at.emplace(tensor.name, location);
    }
    set.layouts.push_back(std::move(layout));
  }
  return set;
}

std::string IndexJson(const std::vector<TensorSpec>& tensors, const FileSet& set) {
  int64_t parameters = 0;
  int64_t bytes = 0;
  std::map<std::string, std::string> sorted;  // the reference sorts keys
  for (const TensorSpec& tensor : tensors) {
    bytes += BytesOf(tensor);
    const TensorLocation& location = set.files.at.at(tensor.name);
    parameters += location.numel;
    sorted[tensor.name] = set.files.files[location.file];
  }
  Json index = {{"metadata", {{"total_parameters", parameters}, {"total_size", bytes}}},
                {"weight_map", sorted}};
  return DumpJson(index, 2) + "\n";
}

absl::StatusOr<std::vector<TensorSpec>> WeightTensors(const std::vector<BucketLayout>& model,
                                                      const WeightSource* source,
                                                      TensorDtype weight_dtype) {
  std::vector<TensorSpec> tensors;
  for (const BucketLayout& bucket : model) {
    for (const TensorSlot& slot : bucket.slots) {
      TensorDtype dtype = weight_dtype;
      if (source != nullptr) {
        const auto it = source->at.find(slot.name);
        if (it == source->at.end()) {
          return absl::InvalidArgumentError(absl::StrCat(
              "plan checkpoint: the source ", source->folder, " has no tensor '", slot.name, "'"));
        }
        if (it->second.dtype != TensorDtype::kF16) dtype = it->second.dtype;
      }
      tensors.push_back({slot.name, dtype, slot.shape});
    }
  }
  return tensors;
}

}  // namespace

std::vector<std::vector<TensorSpec>> SplitIntoShards(const std::vector<TensorSpec>& tensors,
                                                     int64_t max_shard_bytes) {
  std::vector<std::vector<TensorSpec>> shards;
  std::vector<TensorSpec> current;
  int64_t current_bytes = 0;
  for (const TensorSpec& tensor : tensors) {
    const int64_t bytes = BytesOf(tensor);
    if (bytes > max_shard_bytes) {
      shards.push_back({tensor});
      continue;
    }
    if (current_bytes + bytes > max_shard_bytes) {
      shards.push_back(std::move(current));
      current.clear();
      current_bytes = 0;
    }
    current.push_back(tensor);
    current_bytes += bytes;
  }
  if (!current.empty()) shards.push_back(std::move(current));
  return shards;
}

absl::StatusOr<CheckpointPlan> PlanCheckpoint(const std::vector<BucketLayout>& model,
                                              const WeightSource* source,
                                              const CheckpointFormat& format) {
  if (format.max_shard_bytes < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("plan checkpoint: max_shard_bytes is ", format.max_shard_bytes));
  }
  CheckpointPlan plan;
  ASSIGN_OR_RETURN(const std::vector<TensorSpec> weights,
                   WeightTensors(model, source, format.weight_dtype));
  const auto shards = SplitIntoShards(weights, format.max_shard_bytes);
  ASSIGN_OR_RETURN(plan.weights, LayOutFiles(shards, [](size_t number, size_t count) {
                     return count == 1
                                ? std::string("model.safetensors")
                                : absl::StrFormat("model-%05d-of-%05d.safetensors", number, count);
                   }));
  if (shards.size() > 1) plan.index_json = IndexJson(weights, plan.weights);

  std::map<TensorDtype, int64_t> bytes_by_dtype;
  std::vector<TensorSpec> optimizer;
  for (const TensorSpec& tensor : weights) {
    bytes_by_dtype[tensor.dtype] += BytesOf(tensor);
    optimizer.push_back({tensor.name + ".exp_avg", format.moment_dtype, tensor.shape});
    optimizer.push_back({tensor.name + ".exp_avg_sq", format.moment_dtype, tensor.shape});
    if (tensor.dtype == TensorDtype::kBf16) {
      optimizer.push_back({tensor.name + ".remainder", TensorDtype::kI16, tensor.shape});
    }
  }
  plan.dtype = std::max_element(bytes_by_dtype.begin(), bytes_by_dtype.end(),
                                [](const auto& a, const auto& b) { return a.second < b.second; })
                   ->first;
  if (format.save_optimizer) {
    ASSIGN_OR_RETURN(plan.optimizer, LayOutFiles(SplitIntoShards(optimizer, format.max_shard_bytes),
                                                 [](size_t number, size_t count) {
                                                   return absl::StrFormat(
                                                       "%s%05d-of-%05d.safetensors",
                                                       kOptimizerPrefix, number, count);
                                                 }));
  }
  return plan;
}

absl::StatusOr<TensorFiles> ResolveOptimizer(const std::string& folder,
                                             const std::vector<std::string>& file_names,
                                             const WeightSource& weights,
                                             const std::vector<BucketLayout>& model) {
  TensorFiles found;
  found.folder = folder;
  absl::flat_hash_map<std::string, TensorInfo> tensors;
  for (const std::string& name : file_names) {
    if (!absl::StartsWith(name, kOptimizerPrefix)) continue;
    ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(absl::StrCat(folder, "/", name)));
    for (const TensorInfo& info : file->header().tensors) {
      if (!tensors.emplace(info.name, info).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(folder, "/", name, ": tensor '", info.name, "' is in another file too"));
      }
      TensorLocation location;
      location.file = static_cast<int>(found.files.size());
      location.dtype = info.dtype;
      location.offset = file->header().data_offset + info.begin;
      location.numel = static_cast<int64_t>((info.end - info.begin) / (DtypeBits(info.dtype) / 8));
      found.at.emplace(info.name, location);
    }
    found.files.push_back(name);
  }
  if (found.files.empty()) {
    return absl::NotFoundError(
        absl::StrCat("resume from ", folder, ": it was saved without optimizer state"));
  }
  size_t used = 0;
  for (const BucketLayout& bucket : model) {
    for (const TensorSlot& slot : bucket.slots) {
      const auto weight = weights.at.find(slot.name);
      const bool has_remainder =
          weight != weights.at.end() && weight->second.dtype == TensorDtype::kBf16;
      for (const char* suffix : {".exp_avg", ".exp_avg_sq", ".remainder"}) {
        const bool is_remainder = absl::string_view(suffix) == ".remainder";
        if (is_remainder && !has_remainder) continue;
        const auto it = tensors.find(slot.name + suffix);
        if (it == tensors.end()) {
          return absl::InvalidArgumentError(absl::StrCat("resume from ", folder, ": tensor '",
                                                         slot.name, suffix, "' is missing"));
        }
        const TensorDtype dtype = it->second.dtype;
        const bool right_dtype = is_remainder
                                     ? dtype == TensorDtype::kI16
                                     : dtype == TensorDtype::kF32 || dtype == TensorDtype::kBf16;
        if (it->second.shape != slot.shape || !right_dtype) {
          return absl::InvalidArgumentError(absl::StrCat(
              "resume from ", folder, ": tensor '", slot.name, suffix, "' is ", DtypeName(dtype),
              " [", absl::StrJoin(it->second.shape, ", "), "], the model needs ",
              is_remainder ? "I16" : "F32 or BF16", " [", absl::StrJoin(slot.shape, ", "), "]"));
        }
        ++used;
      }
    }
  }
  if (used != tensors.size()) {
    return absl::InvalidArgumentError(absl::StrCat("resume from ", folder, ": ",
                                                   tensors.size() - used,
                                                   " optimizer tensors belong to no weight"));
  }
  return found;
}

}  // namespace switchyard
