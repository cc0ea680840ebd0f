#include "worker/trainer/checkpoint/writer.h"

#include <ATen/ATen.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "worker/trainer/checkpoint/gang_io.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/checkpoint/range_writer.h"
#include "worker/trainer/checkpoint/shard_source.h"
#include "worker/trainer/checkpoint/side_files.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kIndexName[] = "model.safetensors.index.json";

std::string ParentOf(const std::string& path) { return fs::path(path).parent_path().string(); }

// Has the file system set `bytes` bytes aside, or at least makes the file that long.
absl::Status Reserve(int fd, const std::string& path, uint64_t bytes) {
  int rc;
  do {
    rc = ::fallocate(fd, 0, 0, static_cast<off_t>(bytes));
  } while (rc != 0 && errno == EINTR);
  if (rc != 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
    rc = ::ftruncate(fd, static_cast<off_t>(bytes));
  }
  return rc == 0 ? absl::OkStatus() : ErrnoStatus("reserve", path, errno);
}

// A new, durable file of `bytes` bytes that starts with `data`, zeros after it.
absl::Status CreateFile(const std::string& path, absl::string_view data, uint64_t bytes) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoStatus("create", path, errno);
  if (bytes > data.size()) RETURN_IF_ERROR(Reserve(fd.get(), path, bytes));
  RETURN_IF_ERROR(WriteAll(fd.get(), data, path));
  if (::fsync(fd.get()) != 0) return ErrnoStatus("fsync", path, errno);
  return absl::OkStatus();
}

struct SmallFile {
  std::string name;
  std::string data;
};

// All files but those with tensors and the manifest.
absl::StatusOr<std::vector<SmallFile>> SmallFiles(const SaveRequest& request,
                                                  const CheckpointPlan& plan) {
  std::vector<SmallFile> files;
  ASSIGN_OR_RETURN(const std::string config,
                   ReadFile(absl::StrCat(request.source_folder, "/config.json")));
  ASSIGN_OR_RETURN(std::string patched, PatchConfigDtype(config, plan.dtype));
  files.push_back({"config.json", std::move(patched)});
  ASSIGN_OR_RETURN(const std::vector<std::string> side_files, ListSideFiles(request.source_folder));
  for (const std::string& name : side_files) {
    ASSIGN_OR_RETURN(std::string data, ReadFile(absl::StrCat(request.source_folder, "/", name)));
    files.push_back({name, std::move(data)});
  }
  if (!plan.index_json.empty()) files.push_back({kIndexName, plan.index_json});
  files.push_back({kTrainStateName, DumpTrainState(request.state)});
  return files;
}

uint64_t BytesOf(const CheckpointPlan& plan, const std::vector<SmallFile>& small_files) {
  uint64_t bytes = 0;
  for (const SafetensorsLayout* layout : TensorFileLayouts(plan)) bytes += layout->file_bytes;
  for (const SmallFile& file : small_files) bytes += file.data.size();
  return bytes;
}

// Says what the file system has left where `folder` is or will be; empty when it does not tell.
std::string DescribeSpace(const std::string& folder, uint64_t needed, uint64_t* free) {
  *free = UINT64_MAX;
  struct statvfs stats;
  fs::path path = folder;
  while (::statvfs(path.c_str(), &stats) != 0) {
    if (!path.has_relative_path()) return "";
    path = path.parent_path();
  }
  *free = static_cast<uint64_t>(stats.f_bavail) * stats.f_frsize;
  return absl::StrCat("the checkpoint needs ", needed, " bytes, ", *free, " are free");
}

// Makes the folder with everything but the tensors' bytes and the manifest. `begun`: from now on
// the folder is ours to remove.
absl::Status Prepare(const SaveRequest& request, const CheckpointPlan& plan,
                     std::vector<SmallFile>* small_files, bool* begun) {
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
  ASSIGN_OR_RETURN(*small_files, SmallFiles(request, plan));
  *begun = true;
  fs::remove_all(folder, error);  // of an earlier try: nothing stale may stay
  if (error) {
    return absl::UnavailableError(absl::StrCat("remove ", folder, ": ", error.message()));
  }
  RETURN_IF_ERROR(MakeFolders(absl::StrCat(folder, "/switchyard")));
  uint64_t free;
  const uint64_t needed = BytesOf(plan, *small_files);
  DescribeSpace(folder, needed, &free);
  if (needed > free) return absl::ResourceExhaustedError(absl::StrCat("save ", folder));
  for (const SmallFile& file : *small_files) {
    const std::string path = absl::StrCat(folder, "/", file.name);
    RETURN_IF_ERROR(MakeFolders(ParentOf(path)));
    RETURN_IF_ERROR(CreateFile(path, file.data, file.data.size()));
  }
  const std::vector<std::string> names = TensorFileNames(plan);
  const std::vector<const SafetensorsLayout*> layouts = TensorFileLayouts(plan);
  for (size_t i = 0; i < names.size(); ++i) {
    RETURN_IF_ERROR(
        CreateFile(absl::StrCat(folder, "/", names[i]), layouts[i]->head, layouts[i]->file_bytes));
  }
  return absl::OkStatus();
}

// This rank's ranges; on a GPU from pinned buffers.
absl::StatusOr<std::vector<FileRun>> WriteShards(const std::string& folder,
                                                 const CheckpointPlan& plan,
                                                 const std::vector<BucketShard>& shards,
                                                 const SaveOptions& options) {
  ASSIGN_OR_RETURN(const ShardSource source, ShardSource::Make(plan, shards));
  RangeWriterOptions write;
  write.threads = options.threads;
  write.cancelled = options.cancelled;
  if (!shards.empty() && shards[0].weights.is_cuda()) {
    write.make_buffer = [](uint64_t bytes) {
      const at::Tensor buffer = at::empty({static_cast<int64_t>(bytes)},
                                          at::TensorOptions().dtype(at::kByte).pinned_memory(true));
      return std::shared_ptr<char>(static_cast<char*>(buffer.data_ptr()), [buffer](char*) {});
    };
  }
  return WriteRanges(
      folder, TensorFileNames(plan), source.ranges(),
      [&source](const std::vector<RangePart>& parts) { return source.Fill(parts); }, write);
}

// The tensors' files from the runs that the ranks wrote, which must be every byte once.
absl::StatusOr<std::vector<ManifestFile>> SumTensorFiles(const std::string& folder,
                                                         const CheckpointPlan& plan,
                                                         std::vector<FileRun> runs) {
  const std::vector<std::string> names = TensorFileNames(plan);
  const std::vector<const SafetensorsLayout*> layouts = TensorFileLayouts(plan);
  for (size_t i = 0; i < names.size(); ++i) {
    runs.push_back({static_cast<int>(i), 0, layouts[i]->head.size(), Crc32c(layouts[i]->head)});
  }
  const std::vector<FileSum> sums = SumFiles(runs, names.size());
  std::vector<ManifestFile> files;
  for (size_t i = 0; i < names.size(); ++i) {
    if (sums[i].bytes != layouts[i]->file_bytes) {
      return absl::InternalError(absl::StrCat(
          "bug: save ", folder, "/", names[i], ": the ranks' shards must hold every byte once; of ",
          layouts[i]->file_bytes, " they do up to byte ", sums[i].bytes));
    }
    files.push_back({names[i], static_cast<int64_t>(sums[i].bytes), sums[i].crc32c});
  }
  return files;
}

absl::StatusOr<uint32_t> WriteManifest(const SaveRequest& request, std::vector<ManifestFile> files,
                                       const std::vector<SmallFile>& small_files) {
  for (const SmallFile& file : small_files) {
    files.push_back({file.name, static_cast<int64_t>(file.data.size()), Crc32c(file.data)});
  }
  std::sort(files.begin(), files.end(),
            [](const ManifestFile& a, const ManifestFile& b) { return a.name < b.name; });
  Manifest manifest = request.manifest;
  manifest.files = std::move(files);
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

// SaveCheckpoint without what follows an error. `begun` as of Prepare.
uint32_t Save(const SaveRequest& request, const CheckpointPlan& plan,
              const std::vector<BucketShard>& shards, Comm& gang, const SaveOptions& options,
              bool* begun) {
  const std::string what = absl::StrCat("save checkpoint ", request.folder);
  std::vector<SmallFile> small_files;
  absl::Status status;
  if (gang.rank() == 0) status = Prepare(request, plan, &small_files, begun);
  AgreeOk(gang, status, what);
  const absl::StatusOr<std::vector<FileRun>> mine =
      WriteShards(request.folder, plan, shards, options);
  AgreeOk(gang, mine.status(), what);

  const std::vector<int64_t> numbers = GatherNumbers(gang, RunsToNumbers(*mine));
  int64_t manifest_crc = 0;
  if (gang.rank() == 0) {
    absl::StatusOr<std::vector<ManifestFile>> files =
        SumTensorFiles(request.folder, plan, RunsFromNumbers(numbers));
    status = files.status();
    if (status.ok()) {
      const absl::StatusOr<uint32_t> crc = WriteManifest(request, *std::move(files), small_files);
      status = crc.status();
      manifest_crc = crc.value_or(0);
    }
  }
  AgreeOk(gang, status, what);
  return static_cast<uint32_t>(GatherNumbers(gang, gang.rank() == 0
                                                       ? std::vector<int64_t>{manifest_crc}
                                                       : std::vector<int64_t>{})
                                   .at(0));
}

}  // namespace

uint32_t SaveCheckpoint(const SaveRequest& request, const CheckpointPlan& plan,
                        const std::vector<BucketShard>& shards, Comm& gang,
                        const SaveOptions& options) {
  bool begun = false;
  try {
    return Save(request, plan, shards, gang, options, &begun);
  } catch (const StatusError& e) {
    // All ranks have stopped writing. Space is measured before it is given back.
    absl::Status status = e.status();
    if (absl::IsResourceExhausted(status)) {
      uint64_t free;
      const std::string space = DescribeSpace(request.folder, BytesOf(plan, {}), &free);
      if (!space.empty()) {
        status = absl::ResourceExhaustedError(absl::StrCat(status.message(), ": ", space));
      }
    }
    std::error_code ignored;  // the first error counts; staging is collected by the service too
    if (begun) fs::remove_all(request.folder, ignored);
    throw StatusError(std::move(status));
  }
}

}  // namespace switchyard
