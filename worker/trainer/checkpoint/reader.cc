#include "worker/trainer/checkpoint/reader.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/crc32c.h"
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
  for (const CopyRange& range : ranges) {
    RETURN_IF_ERROR(reader.Read(range, use, /*counted=*/shard.writer));
  }
  return absl::OkStatus();
}

at::Device DeviceOf(const std::vector<BucketShard>& shards) {
  return shards.empty() ? at::Device(at::kCPU) : shards[0].weights.device();
}

// Both return runs of `saved.files` that the gang has read exactly once.
absl::StatusOr<std::vector<FileRun>> ReadWeights(const TensorFiles& saved,
                                                 const std::vector<BucketShard>& shards) {
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
  RETURN_IF_ERROR(reader.Finish());
  return reader.runs();
}

absl::StatusOr<std::vector<FileRun>> ReadOptimizer(const TensorFiles& saved,
                                                   const std::vector<BucketShard>& shards) {
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
  RETURN_IF_ERROR(reader.Finish());
  return reader.runs();
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

absl::Status CheckSum(const std::string& folder, const ManifestFile& file, uint32_t crc) {
  if (crc == file.crc32c) return absl::OkStatus();
  return absl::DataLossError(absl::StrFormat("%s/%s: crc32c is %08x, the manifest states %08x",
                                             folder, file.name, crc, file.crc32c));
}

// Collective. Reads these files of the manifest from end to end.
void CheckWholeFiles(Comm& world, const std::string& folder,
                     const std::vector<ManifestFile>& files) {
  std::vector<std::string> names;
  for (const ManifestFile& file : files) names.push_back(file.name);
  const std::vector<uint32_t> crcs = GangCrc32c(world, folder, names);
  for (size_t i = 0; i < files.size(); ++i) OrThrow(CheckSum(folder, files[i], crcs[i]));
}

// A safetensors file up to its data.
absl::StatusOr<FileRun> ReadHead(OpenFiles& files, int file, uint64_t file_bytes) {
  uint64_t header_bytes = 0;  // little-endian, as this machine
  RETURN_IF_ERROR(files.ReadAt(file, 0, &header_bytes, sizeof(header_bytes)));
  if (header_bytes > file_bytes - sizeof(header_bytes)) header_bytes = 0;  // found by its checksum
  std::string head(sizeof(header_bytes) + header_bytes, '\0');
  RETURN_IF_ERROR(files.ReadAt(file, 0, head.data(), head.size()));
  return FileRun{file, 0, head.size(), Crc32c(head)};
}

// Collective. Compares the manifest's checksums of tensor files with what the ranks have read of
// them: `runs`, by index into `files`. Files of which something was not needed, a tied head or
// remainders without a master, are read again as a whole.
void CheckTensorFiles(Comm& world, const std::string& folder,
                      const std::vector<ManifestFile>& files, std::vector<FileRun> runs) {
  std::vector<std::string> names;
  for (const ManifestFile& file : files) names.push_back(file.name);
  OpenFiles opened(folder, names);
  absl::Status status;
  for (size_t i = world.rank(); i < files.size(); i += world.size()) {
    const auto head = ReadHead(opened, static_cast<int>(i), static_cast<uint64_t>(files[i].size));
    if (status.ok()) status = head.status();
    if (head.ok()) runs.push_back(*head);
  }
  AgreeOk(world, status, absl::StrCat("checksums of ", folder));
  const std::vector<FileSum> sums =
      SumFiles(RunsFromNumbers(GatherNumbers(world, RunsToNumbers(JoinRuns(std::move(runs))))),
               files.size());
  std::vector<ManifestFile> again;
  for (size_t i = 0; i < files.size(); ++i) {
    if (sums[i].bytes == static_cast<uint64_t>(files[i].size)) {
      OrThrow(CheckSum(folder, files[i], sums[i].crc32c));
    } else {
      again.push_back(files[i]);
    }
  }
  CheckWholeFiles(world, folder, again);
}

// What a checkpoint says about its tensors.
struct Contents {
  TrainState state;
  WeightSource weights;
  TensorFiles optimizer;  // nothing when no optimizer state is wanted
};

absl::StatusOr<WeightSource> OpenWeights(const std::string& folder,
                                         const std::vector<BucketLayout>& model) {
  ASSIGN_OR_RETURN(const HfModel hf, OpenHfModel(folder));
  return ResolveWeights(hf, model);
}

absl::StatusOr<Contents> OpenContents(const std::string& folder, const Manifest& manifest,
                                      const std::vector<BucketLayout>& model,
                                      const std::vector<BucketShard>& shards) {
  Contents contents;
  ASSIGN_OR_RETURN(contents.state, ReadTrainState(folder));
  if (contents.state.step != manifest.step) {
    return absl::DataLossError(absl::StrCat(folder, "/", kManifestName, ": step ", manifest.step,
                                            ", ", kTrainStateName, ": step ", contents.state.step));
  }
  ASSIGN_OR_RETURN(contents.weights, OpenWeights(folder, model));
  if (!HasOptimizer(shards)) return contents;
  std::vector<std::string> names;
  for (const ManifestFile& file : manifest.files) names.push_back(file.name);
  ASSIGN_OR_RETURN(contents.optimizer, ResolveOptimizer(folder, names, contents.weights, model));
  return contents;
}

// Whether `mine` is true on all ranks.
bool AllAgree(Comm& world, bool mine) {
  at::Tensor disagrees = at::full({1}, mine ? 0 : 1, at::kLong);
  world.AllReduceMax(disagrees);
  return disagrees.item<int64_t>() == 0;
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
  AgreeOk(world, ReadWeights(*source, shards).status(), what);
  return *std::move(source);
}

LoadedCheckpoint LoadCheckpoint(const std::string& folder, const std::vector<BucketLayout>& model,
                                const std::vector<BucketShard>& shards, Comm& world) {
  const std::string what = absl::StrCat("load checkpoint ", folder);
  absl::StatusOr<Manifest> manifest = ReadManifest(folder);
  AgreeOk(world, manifest.ok() ? CheckFileSizes(folder, *manifest) : manifest.status(), what);
  CheckCoverage(model, shards, world);
  std::vector<ManifestFile> tensor_files, small_files;
  for (const ManifestFile& file : manifest->files) {
    (absl::EndsWith(file.name, ".safetensors") ? tensor_files : small_files).push_back(file);
  }
  CheckWholeFiles(world, folder, small_files);
  absl::StatusOr<Contents> contents = OpenContents(folder, *manifest, model, shards);
  if (!AllAgree(world, contents.ok())) {
    // A damaged header is told as what it is.
    CheckWholeFiles(world, folder, tensor_files);
    AgreeOk(world, contents.status(), what);
  }

  std::vector<FileRun> runs;
  const auto add = [&](const TensorFiles& saved, const std::vector<FileRun>& read) {
    for (FileRun run : read) {
      const auto file =
          std::find_if(tensor_files.begin(), tensor_files.end(),
                       [&](const ManifestFile& f) { return f.name == saved.files[run.file]; });
      if (file == tensor_files.end()) continue;  // a file that the manifest does not list
      run.file = static_cast<int>(file - tensor_files.begin());
      runs.push_back(run);
    }
  };
  const auto weights = ReadWeights(contents->weights, shards);
  AgreeOk(world, weights.status(), what);
  add(contents->weights, *weights);
  if (HasOptimizer(shards)) {
    const auto optimizer = ReadOptimizer(contents->optimizer, shards);
    AgreeOk(world, optimizer.status(), what);
    add(contents->optimizer, *optimizer);
  }
  CheckTensorFiles(world, folder, tensor_files, std::move(runs));
  return {*std::move(manifest), std::move(contents->state), std::move(contents->weights)};
}

}  // namespace switchyard
