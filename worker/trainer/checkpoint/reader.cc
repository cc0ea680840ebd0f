#include "worker/trainer/checkpoint/reader.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "worker/trainer/checkpoint/gang_io.h"
#include "worker/trainer/checkpoint/master_bits.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/checkpoint/output_plan.h"
#include "worker/trainer/checkpoint/reshard.h"
#include "worker/trainer/checkpoint/staged_reader.h"

namespace switchyard {
namespace {

// Has `use` called for all pieces of the shard's ranges (staged_reader.h).
absl::Status ReadRanges(StagedReader& reader, const TensorFiles& saved, absl::string_view suffix,
                        bool optional, const BucketShard& shard, const StagedReader::Use& use) {
  ASSIGN_OR_RETURN(const std::vector<CopyRange> ranges,
                   Reshard(saved, suffix, optional, shard.layout, shard.begin, shard.end));
  for (const CopyRange& range : ranges) RETURN_IF_ERROR(reader.Read(range, use));
  return absl::OkStatus();
}

at::Device DeviceOf(const std::vector<BucketShard>& shards) {
  return shards.empty() ? at::Device(at::kCPU) : shards[0].weights.device();
}

absl::Status ReadWeights(const TensorFiles& saved, const std::vector<BucketShard>& shards) {
  StagedReader reader(saved.folder, saved.files, DeviceOf(shards));
  for (const BucketShard& shard : shards) {
    RETURN_IF_ERROR(ReadRanges(
        reader, saved, "", false, shard, [&shard](int64_t first, const at::Tensor& values) {
          at::Tensor weights = shard.weights.narrow(0, first, values.numel());
          if (!shard.remainder.defined()) {
            weights.copy_(values);
            return;
          }
          const MasterParts parts = SplitMaster(values.to(at::kFloat));
          weights.copy_(parts.weight);
          shard.remainder.narrow(0, first, values.numel()).copy_(parts.remainder);
        }));
  }
  return reader.Finish();
}

absl::Status ReadOptimizer(const TensorFiles& saved, const std::vector<BucketShard>& shards) {
  StagedReader reader(saved.folder, saved.files, DeviceOf(shards));
  for (const BucketShard& shard : shards) {
    const auto copy_to = [](const at::Tensor& target) {
      return [target](int64_t first, const at::Tensor& values) {
        target.narrow(0, first, values.numel()).copy_(values);
      };
    };
    RETURN_IF_ERROR(ReadRanges(reader, saved, ".exp_avg", false, shard, copy_to(shard.exp_avg)));
    RETURN_IF_ERROR(
        ReadRanges(reader, saved, ".exp_avg_sq", false, shard, copy_to(shard.exp_avg_sq)));
    // A weight whose file holds F32 is its own master and has no remainder there.
    if (shard.remainder.defined()) {
      RETURN_IF_ERROR(
          ReadRanges(reader, saved, ".remainder", true, shard, copy_to(shard.remainder)));
    } else if (shard.weights.scalar_type() == at::kFloat) {
      RETURN_IF_ERROR(ReadRanges(
          reader, saved, ".remainder", true, shard,
          [&shard](int64_t first, const at::Tensor& values) {
            shard.weights.narrow(0, first, values.numel()).view(at::kInt).add_(values.to(at::kInt));
          }));
    }
  }
  return reader.Finish();
}

bool HasOptimizer(const std::vector<BucketShard>& shards) {
  return !shards.empty() && shards[0].exp_avg.defined();
}

// Our own mistakes in the making of shards, found before the ranks wait for each other.
absl::Status CheckTensors(const std::vector<BucketShard>& shards) {
  const auto bug = [](const BucketShard& shard, absl::string_view problem) {
    return absl::InternalError(absl::StrCat("bug: shard of ", shard.layout.name, ", elements [",
                                            shard.begin, ", ", shard.end, "): ", problem));
  };
  for (const BucketShard& shard : shards) {
    if (!shard.weights.defined()) return bug(shard, "no weights");
    for (const at::Tensor* tensor :
         {&shard.weights, &shard.remainder, &shard.exp_avg, &shard.exp_avg_sq}) {
      if (!tensor->defined()) continue;
      if (tensor->dim() != 1 || !tensor->is_contiguous() ||
          tensor->numel() != shard.end - shard.begin) {
        return bug(shard, absl::StrCat("a tensor of ", tensor->numel(), " elements, or strided"));
      }
    }
    if (shard.remainder.defined() && (shard.weights.scalar_type() != at::kBFloat16 ||
                                      shard.remainder.scalar_type() != at::kShort)) {
      return bug(shard, "an int16 remainder belongs to bf16 weights");
    }
    if (shard.exp_avg.defined() != shards[0].exp_avg.defined() ||
        shard.exp_avg_sq.defined() != shard.exp_avg.defined()) {
      return bug(shard, "some moments are undefined, others not");
    }
  }
  return absl::OkStatus();
}

// A random-looking function of an element's index (SplitMix64's finalizer).
uint64_t Hash(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

absl::Status CheckSums(const std::string& folder, const Manifest& manifest,
                       const std::vector<uint32_t>& crcs) {
  for (size_t i = 0; i < crcs.size(); ++i) {
    if (crcs[i] != manifest.files[i].crc32c) {
      return absl::DataLossError(absl::StrFormat("%s/%s: crc32c is %08x, the manifest states %08x",
                                                 folder, manifest.files[i].name, crcs[i],
                                                 manifest.files[i].crc32c));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<WeightSource> OpenWeights(const std::string& folder,
                                         const std::vector<BucketLayout>& model) {
  ASSIGN_OR_RETURN(const HfModel hf, OpenHfModel(folder));
  return ResolveWeights(hf, model);
}

}  // namespace

// Ranges tile a tensor exactly when every inner boundary ends as many ranges as it begins, and 0
// and numel are the odd ones out: the sum of hash(end) - hash(begin) telescopes to hash(numel) -
// hash(0). Two sums per tensor show it without gathering the ranges.
void CheckCoverage(const std::vector<BucketLayout>& model, const std::vector<BucketShard>& shards,
                   Comm& world) {
  absl::Status status = CheckTensors(shards);
  absl::flat_hash_map<std::string, int64_t> index;
  std::vector<const TensorSlot*> slots;
  for (const BucketLayout& bucket : model) {
    for (const TensorSlot& slot : bucket.slots) {
      index.emplace(slot.name, static_cast<int64_t>(slots.size()));
      slots.push_back(&slot);
    }
  }
  at::Tensor sums = at::zeros({2 * static_cast<int64_t>(slots.size())}, at::kLong);
  int64_t* const sum = sums.data_ptr<int64_t>();
  for (const BucketShard& shard : shards) {
    if (!shard.writer) continue;
    for (const TensorSlot& slot : shard.layout.slots) {
      const auto it = index.find(slot.name);
      if (it == index.end()) {
        status = absl::InternalError(absl::StrCat("bug: shard of ", shard.layout.name,
                                                  ": the model has no '", slot.name, "'"));
        continue;
      }
      const int64_t first = std::max(shard.begin, slot.offset) - slot.offset;
      const int64_t last = std::min(shard.end, slot.offset + slot.numel) - slot.offset;
      if (first >= last) continue;
      sum[2 * it->second] += last - first;
      const uint64_t telescope = static_cast<uint64_t>(sum[2 * it->second + 1]) +
                                 Hash(static_cast<uint64_t>(last)) -
                                 Hash(static_cast<uint64_t>(first));
      sum[2 * it->second + 1] = static_cast<int64_t>(telescope);
    }
  }
  AgreeOk(world, status, "check shards");
  world.AllReduceSum(sums);
  const int64_t* const total = sums.data_ptr<int64_t>();
  for (size_t i = 0; i < slots.size(); ++i) {
    const uint64_t whole = Hash(static_cast<uint64_t>(slots[i]->numel)) - Hash(0);
    if (total[2 * i] != slots[i]->numel || static_cast<uint64_t>(total[2 * i + 1]) != whole) {
      throw StatusError(absl::InternalError(
          absl::StrCat("bug: the ranks' shards must hold every element of '", slots[i]->name,
                       "' once: it has ", slots[i]->numel, ", they hold ", total[2 * i])));
    }
  }
}

WeightSource LoadWeights(const std::string& folder, const std::vector<BucketLayout>& model,
                         const std::vector<BucketShard>& shards, Comm& world) {
  CheckCoverage(model, shards, world);
  const std::string what = absl::StrCat("load weights from ", folder);
  absl::StatusOr<WeightSource> source = OpenWeights(folder, model);
  AgreeOk(world, source.status(), what);
  AgreeOk(world, ReadWeights(*source, shards), what);
  return *std::move(source);
}

LoadedCheckpoint LoadCheckpoint(const std::string& folder, const std::vector<BucketLayout>& model,
                                const std::vector<BucketShard>& shards, Comm& world) {
  const std::string what = absl::StrCat("load checkpoint ", folder);
  absl::StatusOr<Manifest> manifest = ReadManifest(folder);
  AgreeOk(world, manifest.ok() ? CheckFileSizes(folder, *manifest) : manifest.status(), what);
  std::vector<std::string> names;
  for (const ManifestFile& file : manifest->files) names.push_back(file.name);
  OrThrow(CheckSums(folder, *manifest, GangCrc32c(world, folder, names)));

  LoadedCheckpoint loaded;
  loaded.source = LoadWeights(folder, model, shards, world);
  absl::StatusOr<TrainState> state = ReadTrainState(folder);
  AgreeOk(world, state.status(), what);
  if (HasOptimizer(shards)) {
    absl::StatusOr<TensorFiles> optimizer = ResolveOptimizer(folder, names, loaded.source, model);
    AgreeOk(world, optimizer.status(), what);
    AgreeOk(world, ReadOptimizer(*optimizer, shards), what);
  }
  loaded.manifest = *std::move(manifest);
  loaded.state = *std::move(state);
  return loaded;
}

}  // namespace switchyard
