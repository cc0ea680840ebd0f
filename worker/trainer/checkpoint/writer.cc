#include "worker/trainer/checkpoint/writer.h"

#include <ATen/ATen.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "worker/trainer/checkpoint/gang_io.h"
#include "worker/trainer/checkpoint/master_bits.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/checkpoint/reader.h"
#include "worker/trainer/checkpoint/reshard.h"
#include "worker/trainer/checkpoint/side_files.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kChunkElements = 4 << 20;
constexpr char kIndexName[] = "model.safetensors.index.json";

std::string ParentOf(const std::string& path) { return fs::path(path).parent_path().string(); }

// A new, durable file of `bytes` bytes that starts with `data`, zeros after it.
absl::Status CreateFile(const std::string& path, absl::string_view data, uint64_t bytes) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoStatus("create", path, errno);
  RETURN_IF_ERROR(WriteAll(fd.get(), data, path));
  if (bytes > data.size() && ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return ErrnoStatus("extend", path, errno);
  }
  if (::fsync(fd.get()) != 0) return ErrnoStatus("fsync", path, errno);
  return absl::OkStatus();
}

absl::Status CreateSet(const std::string& folder, const FileSet& set) {
  for (size_t i = 0; i < set.layouts.size(); ++i) {
    RETURN_IF_ERROR(CreateFile(absl::StrCat(folder, "/", set.files.files[i]), set.layouts[i].head,
                               set.layouts[i].file_bytes));
  }
  return absl::OkStatus();
}

// Makes the folder with everything but the tensors' bytes and the manifest. Adds the names of all
// files to `names`.
absl::Status Prepare(const SaveRequest& request, const CheckpointPlan& plan,
                     std::vector<std::string>& names) {
  const std::string& folder = request.folder;
  std::error_code error;
  // What is removed and written must not be, or hold, what is copied from.
  const fs::path target = fs::weakly_canonical(folder, error);
  for (fs::path path = fs::weakly_canonical(request.source_folder, error); !error;
       path = path.parent_path()) {
    if (path == target) {
      return absl::InvalidArgumentError(absl::StrCat("save to ", folder, ": the model's source, ",
                                                     request.source_folder, ", is there"));
    }
    if (path == path.parent_path()) break;
  }
  fs::remove_all(folder, error);  // of an earlier try: nothing stale may stay
  if (error) {
    return absl::UnavailableError(absl::StrCat("remove ", folder, ": ", error.message()));
  }
  RETURN_IF_ERROR(MakeFolders(absl::StrCat(folder, "/switchyard")));
  std::vector<std::pair<std::string, std::string>> small_files;
  ASSIGN_OR_RETURN(const std::string config,
                   ReadFile(absl::StrCat(request.source_folder, "/config.json")));
  ASSIGN_OR_RETURN(std::string patched, PatchConfigDtype(config, plan.dtype));
  small_files.emplace_back("config.json", std::move(patched));
  ASSIGN_OR_RETURN(const std::vector<std::string> side_files, ListSideFiles(request.source_folder));
  for (const std::string& name : side_files) {
    ASSIGN_OR_RETURN(std::string data, ReadFile(absl::StrCat(request.source_folder, "/", name)));
    small_files.emplace_back(name, std::move(data));
  }
  if (!plan.index_json.empty()) small_files.emplace_back(kIndexName, plan.index_json);
  small_files.emplace_back(kTrainStateName, DumpTrainState(request.state));
  for (const auto& [name, data] : small_files) {
    const std::string path = absl::StrCat(folder, "/", name);
    RETURN_IF_ERROR(MakeFolders(ParentOf(path)));
    RETURN_IF_ERROR(CreateFile(path, data, data.size()));
    names.push_back(name);
  }
  RETURN_IF_ERROR(CreateSet(folder, plan.weights));
  return CreateSet(folder, plan.optimizer);
}

// The bytes of elements [first, first + n) of the shard's weights as a file holds them, on the CPU.
at::Tensor EncodeWeights(const BucketShard& shard, TensorDtype dtype, int64_t first, int64_t n) {
  const at::Tensor weights = shard.weights.narrow(0, first, n);
  const bool is_bf16 = weights.scalar_type() == at::kBFloat16;
  at::Tensor encoded;
  if (dtype == TensorDtype::kBf16) {
    encoded = is_bf16 ? weights : SplitMaster(weights).weight;
  } else if (is_bf16 && shard.remainder.defined()) {
    encoded = JoinMaster(weights, shard.remainder.narrow(0, first, n));
  } else {
    encoded = weights.to(at::kFloat);
  }
  return encoded.cpu().contiguous();
}

at::Tensor EncodeRemainder(const BucketShard& shard, int64_t first, int64_t n) {
  if (shard.remainder.defined()) return shard.remainder.narrow(0, first, n).cpu();
  const at::Tensor weights = shard.weights.narrow(0, first, n);
  if (weights.scalar_type() == at::kFloat) return SplitMaster(weights).remainder.cpu();
  return at::zeros({n}, at::kShort);  // the bf16 weight is all there is
}

absl::Status WriteRanges(OpenFiles& files, const TensorFiles& target, absl::string_view suffix,
                         bool optional, const BucketShard& shard,
                         const std::function<at::Tensor(TensorDtype, int64_t, int64_t)>& encode) {
  ASSIGN_OR_RETURN(const std::vector<CopyRange> ranges,
                   Reshard(target, suffix, optional, shard.layout, shard.begin, shard.end));
  for (const CopyRange& range : ranges) {
    const int64_t element_bytes = DtypeBits(range.dtype) / 8;
    for (int64_t done = 0; done < range.count; done += kChunkElements) {
      const int64_t n = std::min(kChunkElements, range.count - done);
      const at::Tensor values = encode(range.dtype, range.shard_begin + done, n);
      TORCH_CHECK(static_cast<int64_t>(values.nbytes()) == n * element_bytes,
                  "bug: write shard of ", shard.layout.name, ": ", values.nbytes(), " bytes for ",
                  n, " elements of ", element_bytes);
      RETURN_IF_ERROR(files.WriteAt(range.file, range.offset + done * element_bytes,
                                    values.data_ptr(), values.nbytes()));
    }
  }
  return absl::OkStatus();
}

absl::Status WriteShards(const std::string& folder, const CheckpointPlan& plan,
                         const std::vector<BucketShard>& shards) {
  OpenFiles weights(folder, plan.weights.files.files, O_WRONLY);
  OpenFiles optimizer(folder, plan.optimizer.files.files, O_WRONLY);
  const bool with_optimizer = !plan.optimizer.layouts.empty();
  for (const BucketShard& shard : shards) {
    if (!shard.writer) continue;
    RETURN_IF_ERROR(WriteRanges(weights, plan.weights.files, "", false, shard,
                                [&shard](TensorDtype dtype, int64_t first, int64_t n) {
                                  return EncodeWeights(shard, dtype, first, n);
                                }));
    if (!with_optimizer) continue;
    if (!shard.exp_avg.defined()) {
      return absl::InternalError(absl::StrCat("bug: shard of ", shard.layout.name,
                                              ": the plan saves moments, which are undefined"));
    }
    const auto moment = [](const at::Tensor& values) {
      return [values](TensorDtype dtype, int64_t first, int64_t n) {
        const at::ScalarType wanted = dtype == TensorDtype::kBf16 ? at::kBFloat16 : at::kFloat;
        return values.narrow(0, first, n).to(wanted).cpu();
      };
    };
    RETURN_IF_ERROR(WriteRanges(optimizer, plan.optimizer.files, ".exp_avg", false, shard,
                                moment(shard.exp_avg)));
    RETURN_IF_ERROR(WriteRanges(optimizer, plan.optimizer.files, ".exp_avg_sq", false, shard,
                                moment(shard.exp_avg_sq)));
    RETURN_IF_ERROR(WriteRanges(optimizer, plan.optimizer.files, ".remainder", true, shard,
                                [&shard](TensorDtype, int64_t first, int64_t n) {
                                  return EncodeRemainder(shard, first, n);
                                }));
  }
  RETURN_IF_ERROR(weights.Sync());
  return optimizer.Sync();
}

absl::StatusOr<uint32_t> WriteManifest(const SaveRequest& request,
                                       const std::vector<std::string>& names,
                                       const std::vector<uint32_t>& crcs) {
  Manifest manifest = request.manifest;
  manifest.files.clear();
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string path = absl::StrCat(request.folder, "/", names[i]);
    struct stat st;
    if (::stat(path.c_str(), &st) != 0) return ErrnoStatus("stat", path, errno);
    manifest.files.push_back({names[i], st.st_size, crcs[i]});
  }
  const std::string text = DumpManifest(manifest);
  RETURN_IF_ERROR(ReplaceFile(absl::StrCat(request.folder, "/", kManifestName), text));
  const std::string templates = absl::StrCat(request.folder, "/additional_chat_templates");
  std::error_code ignored;
  if (fs::is_directory(templates, ignored)) RETURN_IF_ERROR(SyncFolder(templates));
  RETURN_IF_ERROR(SyncFolder(request.folder));
  const std::string parent = ParentOf(request.folder);
  RETURN_IF_ERROR(SyncFolder(parent.empty() ? "." : parent));
  return Crc32c(text);
}

}  // namespace

uint32_t SaveCheckpoint(const SaveRequest& request, const CheckpointPlan& plan,
                        const std::vector<BucketLayout>& model,
                        const std::vector<BucketShard>& shards, Comm& world) {
  CheckCoverage(model, shards, world);
  const std::string what = absl::StrCat("save checkpoint ", request.folder);
  std::vector<std::string> names;
  absl::Status status;
  if (world.rank() == 0) status = Prepare(request, plan, names);
  AgreeOk(world, status, what);
  AgreeOk(world, WriteShards(request.folder, plan, shards), what);

  // Rank 0 alone knows the small files; it reads those, the gang shares the tensors' files.
  std::vector<std::string> shared = plan.weights.files.files;
  shared.insert(shared.end(), plan.optimizer.files.files.begin(), plan.optimizer.files.files.end());
  const std::vector<uint32_t> shared_crcs = GangCrc32c(world, request.folder, shared);
  at::Tensor manifest_crc = at::zeros({1}, at::kLong);
  if (world.rank() == 0) {
    std::vector<std::pair<std::string, uint32_t>> files;
    for (size_t i = 0; i < shared.size(); ++i) files.emplace_back(shared[i], shared_crcs[i]);
    for (const std::string& name : names) {
      const absl::StatusOr<uint32_t> crc = FileCrc32c(absl::StrCat(request.folder, "/", name));
      if (status.ok()) status = crc.status();
      files.emplace_back(name, crc.value_or(0));
    }
    std::sort(files.begin(), files.end());
    std::vector<std::string> sorted_names;
    std::vector<uint32_t> sorted_crcs;
    for (const auto& [name, crc] : files) {
      sorted_names.push_back(name);
      sorted_crcs.push_back(crc);
    }
    if (status.ok()) {
      const absl::StatusOr<uint32_t> crc = WriteManifest(request, sorted_names, sorted_crcs);
      status = crc.status();
      if (crc.ok()) manifest_crc.fill_(static_cast<int64_t>(*crc));
    }
  }
  AgreeOk(world, status, what);
  world.AllReduceSum(manifest_crc);
  return static_cast<uint32_t>(manifest_crc.item<int64_t>());
}

}  // namespace switchyard
