#include "client/checkpoint_check.h"

#include <string.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "base/crc32c.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "worker/trainer/checkpoint/manifest.h"
#include "worker/trainer/checkpoint/safetensors.h"
#include "worker/trainer/models/model_config.h"
#include "worker/trainer/models/weight_names.h"

namespace switchyard {
namespace {

constexpr char kConfig[] = "config.json";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kSingle[] = "model.safetensors";
constexpr char kHead[] = "lm_head.weight";
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxJsonBytes = 64 << 20;

using Shape = std::vector<int64_t>;

std::string Text(const Shape& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

// "3 tensors <what>: 'a', 'b', 'c' and others".
std::string Some(const std::vector<std::string>& names, absl::string_view what) {
  const std::vector<std::string> shown(names.begin(),
                                       names.begin() + std::min<size_t>(3, names.size()));
  return absl::StrCat(names.size(), names.size() == 1 ? " tensor " : " tensors ", what, ": '",
                      absl::StrJoin(shown, "', '"), "'", names.size() > 3 ? " and others" : "");
}

// What is kept of a file.
struct Scanned {
  int64_t size = 0;
  uint32_t crc32c = 0;
  std::string head;  // of safetensors: up to the data; of JSON: all; else nothing
};

class Check {
 public:
  explicit Check(CheckpointSource& source) : source_(source) {}

  absl::StatusOr<CheckpointReport> Run() && {
    ASSIGN_OR_RETURN(names_, source_.ListFiles());
    RETURN_IF_ERROR(ReadAll());
    CheckManifest();
    ParseHeaders();
    CheckWeightFiles();
    CheckNames();
    CheckOptimizer();
    report_.tensors = static_cast<int64_t>(weights_.size());
    return std::move(report_);
  }

 private:
  void Fault(const std::string& file, std::string reason) {
    report_.faults.push_back({file, std::move(reason)});
  }
  bool Has(const std::string& name) const {
    return std::binary_search(names_.begin(), names_.end(), name);
  }

  absl::Status ReadAll() {
    for (const std::string& name : names_) {
      Scanned scanned;
      const bool tensors = absl::EndsWith(name, ".safetensors");
      const bool json = absl::EndsWith(name, ".json");
      const absl::Status status = source_.Scan(name, [&](absl::string_view data) {
        scanned.size += static_cast<int64_t>(data.size());
        scanned.crc32c = Crc32c(scanned.crc32c, data.data(), data.size());
        size_t wanted = json ? kMaxJsonBytes : 0;
        if (tensors) {
          wanted = 8;
          if (scanned.head.size() + data.size() >= 8) {
            std::string first = scanned.head.substr(0, 8);
            absl::StrAppend(&first, data.substr(0, 8 - first.size()));
            uint64_t length = 0;
            memcpy(&length, first.data(), 8);
            // More is a fault that the parser finds by the length alone.
            wanted = 8 + static_cast<size_t>(length <= kMaxHeaderBytes ? length : 0);
          }
        }
        if (scanned.head.size() < wanted) {
          absl::StrAppend(&scanned.head, data.substr(0, wanted - scanned.head.size()));
        }
        return absl::OkStatus();
      });
      if (absl::IsDataLoss(status)) {
        Fault(name, std::string(status.message()));
        unreadable_.insert(name);
        continue;
      }
      RETURN_IF_ERROR(status);
      ++report_.files;
      report_.bytes += scanned.size;
      scanned_.emplace(name, std::move(scanned));
    }
    return absl::OkStatus();
  }

  void CheckManifest() {
    if (!Has(kManifestName)) {
      const auto ours = std::find_if(names_.begin(), names_.end(), [](const std::string& name) {
        return absl::StartsWith(name, "switchyard/");
      });
      if (ours != names_.end()) {
        Fault(kManifestName, "is missing: the checkpoint was not written to its end");
      } else {
        report_.notes.push_back("no switchyard/manifest.json: sizes and checksums are not known");
      }
      return;
    }
    if (unreadable_.count(kManifestName) > 0) return;
    const absl::StatusOr<Manifest> manifest =
        ParseManifest(scanned_.at(kManifestName).head, kManifestName);
    if (!manifest.ok()) {
      Fault(kManifestName,
            std::string(absl::StripPrefix(absl::string_view(manifest.status().message()),
                                          absl::StrCat(kManifestName, ": "))));
      return;
    }
    report_.step = manifest->step;
    std::set<std::string> listed = {kManifestName};
    for (const ManifestFile& file : manifest->files) {
      listed.insert(file.name);
      const auto it = scanned_.find(file.name);
      if (it == scanned_.end()) {
        if (unreadable_.count(file.name) == 0) Fault(file.name, "is missing");
      } else if (it->second.size != file.size) {
        Fault(file.name,
              absl::StrCat("has ", it->second.size, " bytes, the manifest says ", file.size));
      } else if (it->second.crc32c != file.crc32c) {
        Fault(file.name, absl::StrFormat("has crc32c %08x, the manifest says %08x",
                                         it->second.crc32c, file.crc32c));
      }
    }
    for (const std::string& name : names_) {
      if (listed.count(name) == 0) Fault(name, "is not in the manifest");
    }
  }

  void ParseHeaders() {
    for (const auto& [name, scanned] : scanned_) {
      if (!absl::EndsWith(name, ".safetensors")) continue;
      absl::StatusOr<SafetensorsHeader> header =
          ParseSafetensorsHeader(scanned.head, static_cast<uint64_t>(scanned.size), name);
      if (header.ok()) {
        headers_.emplace(name, *std::move(header));
      } else {
        Fault(name, std::string(absl::StripPrefix(absl::string_view(header.status().message()),
                                                  absl::StrCat(name, ": "))));
      }
    }
  }

  // A tensor of the model is in this file.
  void AddWeight(const std::string& file, const TensorInfo& tensor,
                 std::map<std::string, std::vector<std::string>>& twice) {
    const auto [it, is_new] = weights_.emplace(tensor.name, tensor.shape);
    if (!is_new) twice[file].push_back(tensor.name);
  }

  void CheckWeightFiles() {
    std::map<std::string, std::vector<std::string>> twice;  // file -> tensors
    if (Has(kSingle) && Has(kIndex)) {
      Fault(kIndex, "stands beside model.safetensors, which loaders take instead");
    }
    if (Has(kSingle)) {
      known_ = headers_.count(kSingle) > 0;
      if (known_) {
        for (const TensorInfo& t : headers_.at(kSingle).tensors) AddWeight(kSingle, t, twice);
      }
    } else if (Has(kIndex)) {
      CheckIndex(twice);
    } else {
      Fault(kSingle, "is missing, and so is model.safetensors.index.json");
    }
    for (const auto& [file, tensors] : twice) Fault(file, Some(tensors, "also in another file"));
    // Files of an earlier layout would be loaded by those who do not read the index.
    for (const std::string& name : names_) {
      if (absl::EndsWith(name, ".safetensors") && !absl::StrContains(name, "/") &&
          name != kSingle && indexed_files_.count(name) == 0 &&
          (Has(kSingle) || !indexed_files_.empty())) {
        Fault(name, Has(kSingle) ? "stands beside model.safetensors" : "is not in the index");
      }
    }
  }

  void CheckIndex(std::map<std::string, std::vector<std::string>>& twice) {
    const auto scanned = scanned_.find(kIndex);
    if (scanned == scanned_.end()) return;
    const absl::StatusOr<Json> index = ParseJson(scanned->second.head, kIndex);
    const Json* map = index.ok() && index->is_object() ? JsonFind(*index, "weight_map") : nullptr;
    if (map == nullptr || !map->is_object() || map->empty()) {
      Fault(kIndex, index.ok()
                        ? "has no weight_map, or an empty one"
                        : std::string(absl::StripPrefix(absl::string_view(index.status().message()),
                                                        absl::StrCat(kIndex, ": "))));
      return;
    }
    known_ = true;
    std::map<std::string, std::set<std::string>> wanted;  // file -> tensors
    for (const auto& item : map->items()) {
      const std::string* file = item.value().get_ptr<const std::string*>();
      if (file == nullptr || absl::StrContains(*file, "/")) {
        Fault(kIndex, absl::StrCat("tensor '", item.key(), "': not the name of a file"));
        continue;
      }
      wanted[*file].insert(item.key());
    }
    for (const auto& [file, tensors] : wanted) {
      indexed_files_.insert(file);
      const auto header = headers_.find(file);
      if (header == headers_.end()) {
        // Files of the manifest have their fault already.
        if (!Has(file)) {
          Fault(kIndex, absl::StrCat("names ", file, ", which is missing, for ",
                                     Some({tensors.begin(), tensors.end()}, "of the model")));
        }
        known_ = false;
        continue;
      }
      std::vector<std::string> unlisted;
      std::set<std::string> missing = tensors;
      for (const TensorInfo& tensor : header->second.tensors) {
        if (missing.erase(tensor.name) == 0) unlisted.push_back(tensor.name);
        AddWeight(file, tensor, twice);
      }
      if (!missing.empty()) {
        Fault(file, Some({missing.begin(), missing.end()}, "of the index missing"));
      }
      if (!unlisted.empty()) Fault(file, Some(unlisted, "that the index does not put there"));
    }
  }

  void CheckNames() {
    const auto config = scanned_.find(kConfig);
    if (config == scanned_.end()) {
      if (unreadable_.count(kConfig) == 0) Fault(kConfig, "is missing");
      return;
    }
    const absl::StatusOr<Json> json = ParseJson(config->second.head, kConfig);
    const absl::StatusOr<ModelConfig> model = json.ok() ? ParseModelConfig(*json) : json.status();
    if (absl::IsUnimplemented(model.status())) {
      report_.notes.push_back(absl::StrCat("tensor names are not checked: ",
                                           absl::string_view(model.status().message())));
      return;
    }
    if (!model.ok()) {
      Fault(kConfig, std::string(absl::StripPrefix(absl::string_view(model.status().message()),
                                                   absl::StrCat(kConfig, ": "))));
      return;
    }
    if (!known_) return;  // what is missing has its fault already
    std::vector<std::string> missing, unexpected;
    std::set<std::string> expected;
    for (const BucketLayout& bucket : BuildBuckets(*model, 0, model->num_experts)) {
      for (const TensorSlot& slot : bucket.slots) {
        expected.insert(slot.name);
        const auto it = weights_.find(slot.name);
        if (it == weights_.end()) {
          missing.push_back(slot.name);
        } else if (it->second != slot.shape) {
          Fault(kConfig, absl::StrCat("means tensor '", slot.name, "' of shape ", Text(slot.shape),
                                      ", the file has ", Text(it->second)));
        }
      }
    }
    for (const auto& [name, shape] : weights_) {
      // With tied embeddings older writers store the head too.
      const bool tied = model->tie_word_embeddings && name == kHead;
      if (expected.count(name) == 0 && !tied) unexpected.push_back(name);
    }
    const std::string where = Has(kSingle) ? kSingle : kIndex;
    if (!missing.empty()) Fault(where, Some(missing, "of the model missing"));
    if (!unexpected.empty()) Fault(where, Some(unexpected, "that the model does not have"));
  }

  void CheckOptimizer() {
    std::set<std::string> seen;
    std::map<std::string, int> moments;  // tensors of the model -> moments there
    bool whole = known_;
    for (const std::string& name : names_) {
      if (!absl::StartsWith(name, "switchyard/") || !absl::EndsWith(name, ".safetensors")) continue;
      const auto header = headers_.find(name);
      if (header == headers_.end()) {
        whole = false;
        continue;
      }
      std::vector<std::string> twice, unknown;
      for (const TensorInfo& tensor : header->second.tensors) {
        if (!seen.insert(tensor.name).second) twice.push_back(tensor.name);
        absl::string_view base = tensor.name;
        const bool moment =
            absl::ConsumeSuffix(&base, ".exp_avg") || absl::ConsumeSuffix(&base, ".exp_avg_sq");
        if (!moment) absl::ConsumeSuffix(&base, ".remainder");
        const auto weight = weights_.find(std::string(base));
        if (known_ && (weight == weights_.end() || weight->second != tensor.shape)) {
          unknown.push_back(tensor.name);
        }
        if (moment) ++moments[std::string(base)];
      }
      if (!twice.empty()) Fault(name, Some(twice, "also in another file"));
      if (!unknown.empty()) Fault(name, Some(unknown, "that fit no tensor of the model"));
    }
    if (seen.empty() || !whole) return;
    std::vector<std::string> without;
    for (const auto& [name, shape] : weights_) {
      const auto it = moments.find(name);
      if (it == moments.end() || it->second != 2) without.push_back(name);
    }
    if (!without.empty()) {
      Fault("switchyard", Some(without, "without both moments of the optimizer"));
    }
  }

  CheckpointSource& source_;
  std::vector<std::string> names_;
  std::map<std::string, Scanned> scanned_;
  std::set<std::string> unreadable_;  // they have their fault
  std::map<std::string, SafetensorsHeader> headers_;
  std::set<std::string> indexed_files_;
  std::map<std::string, Shape> weights_;
  bool known_ = false;  // all files of the weights could be read: weights_ is all there is
  CheckpointReport report_;
};

}  // namespace

absl::StatusOr<CheckpointReport> CheckCheckpoint(CheckpointSource& source) {
  return Check(source).Run();
}

}  // namespace switchyard
