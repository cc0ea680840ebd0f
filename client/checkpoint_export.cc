// checkpoints export: a model folder in another dtype, without `switchyard/`.
//
// Tensor by tensor, in pieces: memory does not grow with the model. Files hold the same tensors as
// the checkpoint's. Written beside FOLDER and renamed when all of it is on the disk.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/edit_distance.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "client/checkpoints.h"
#include "client/tensor_values.h"
#include "worker/trainer/checkpoint/hf_model.h"
#include "worker/trainer/checkpoint/safetensors.h"
#include "worker/trainer/checkpoint/side_files.h"

namespace switchyard {
namespace {

constexpr char kIndex[] = "model.safetensors.index.json";
constexpr size_t kPieceBytes = 4 << 20;  // of the source

struct DtypeFlag {
  const char* name;
  TensorDtype dtype;
};
constexpr DtypeFlag kDtypes[] = {
    {"bf16", TensorDtype::kBf16}, {"fp16", TensorDtype::kF16}, {"fp32", TensorDtype::kF32}};

// Loaders expect these in fp32 whatever the model's dtype is.
bool StaysFp32(const std::string& name) {
  return absl::EndsWith(name, "e_score_correction_bias") || absl::EndsWith(name, ".A_log");
}

TensorDtype Exported(const TensorSpec& tensor, TensorDtype wanted) {
  const bool kept =
      !IsFloating(tensor.dtype) || (tensor.dtype == TensorDtype::kF32 && StaysFp32(tensor.name));
  return kept ? tensor.dtype : wanted;
}

class Exporter {
 public:
  Exporter(std::string from, std::string to, TensorDtype dtype)
      : from_(std::move(from)), to_(std::move(to)), temporary_(to_ + ".exporting"), dtype_(dtype) {}

  absl::Status Run() {
    struct stat st;
    if (::lstat(to_.c_str(), &st) == 0) {
      return absl::AlreadyExistsError(absl::StrCat(to_, " is there already"));
    }
    // What an earlier export that was cut off left.
    std::error_code error;
    std::filesystem::remove_all(temporary_, error);
    RETURN_IF_ERROR(MakeFolders(temporary_));
    const absl::Status written = WriteAllFiles();
    if (!written.ok()) {
      std::filesystem::remove_all(temporary_, error);
      return written;
    }
    if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, to_.c_str(), RENAME_NOREPLACE) != 0) {
      return ErrnoStatus(absl::StrCat("rename ", temporary_, " to"), to_, errno);
    }
    const size_t slash = to_.rfind('/');
    return SyncFolder(slash == std::string::npos ? "." : slash == 0 ? "/" : to_.substr(0, slash));
  }

  int64_t bytes() const { return bytes_; }
  int64_t tensors() const { return tensors_; }

 private:
  absl::Status WriteAllFiles() {
    ASSIGN_OR_RETURN(const HfModel model, OpenHfModel(from_));
    for (const std::string& file : model.files) RETURN_IF_ERROR(WriteWeights(file));
    if (model.files.size() > 1 || model.files[0] != "model.safetensors") {
      RETURN_IF_ERROR(WriteIndex());
    }
    ASSIGN_OR_RETURN(const std::string config, ReadFile(from_ + "/config.json"));
    ASSIGN_OR_RETURN(const std::string patched, PatchConfigDtype(config, dtype_));
    RETURN_IF_ERROR(Put("config.json", patched));
    ASSIGN_OR_RETURN(const std::vector<std::string> side_files, ListSideFiles(from_));
    for (const std::string& name : side_files) {
      ASSIGN_OR_RETURN(const std::string text, ReadFile(absl::StrCat(from_, "/", name)));
      RETURN_IF_ERROR(Put(name, text));
    }
    return SyncFolder(temporary_);
  }

  absl::Status Put(const std::string& name, absl::string_view text) {
    const std::string path = absl::StrCat(temporary_, "/", name);
    if (absl::StrContains(name, "/")) RETURN_IF_ERROR(MakeFolders(path.substr(0, path.rfind('/'))));
    return ReplaceFile(path, text);
  }

  absl::Status WriteWeights(const std::string& name) {
    ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> source,
                     SafetensorsFile::Open(absl::StrCat(from_, "/", name)));
    std::vector<TensorSpec> specs;
    for (const TensorInfo& tensor : source->header().tensors) {
      specs.push_back(tensor);
      specs.back().dtype = Exported(tensor, dtype_);
    }
    ASSIGN_OR_RETURN(const SafetensorsLayout layout, LayOutSafetensors(std::move(specs)));
    const std::string path = absl::StrCat(temporary_, "/", name);
    UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!fd.valid()) return ErrnoStatus("open", path, errno);
    RETURN_IF_ERROR(WriteAll(fd.get(), layout.head, path));
    for (const TensorInfo& tensor : layout.tensors) {
      RETURN_IF_ERROR(WriteTensor(*source, tensor, fd.get(), path));
      total_size_ += static_cast<int64_t>(tensor.end - tensor.begin);
      file_of_[tensor.name] = name;
      ++tensors_;
    }
    if (::fsync(fd.get()) != 0) return ErrnoStatus("fsync", path, errno);
    bytes_ += static_cast<int64_t>(layout.file_bytes);
    return absl::OkStatus();
  }

  absl::Status WriteTensor(const SafetensorsFile& source, const TensorInfo& wanted, int fd,
                           const std::string& path) {
    const TensorInfo& tensor = *source.Find(wanted.name);
    const absl::string_view bytes = source.Bytes(tensor);
    std::string piece;
    for (size_t at = 0; at < bytes.size(); at += kPieceBytes) {
      const absl::string_view part = bytes.substr(at, kPieceBytes);
      if (wanted.dtype == tensor.dtype) {
        RETURN_IF_ERROR(WriteAll(fd, part, path));
        continue;
      }
      piece.clear();
      const int64_t overflown = ConvertElements(part, tensor.dtype, wanted.dtype, piece);
      if (overflown > 0) {
        return absl::FailedPreconditionError(absl::StrCat("tensor '", tensor.name, "' has ",
                                                          overflown, " or more values that ",
                                                          DtypeName(wanted.dtype), " cannot hold"));
      }
      RETURN_IF_ERROR(WriteAll(fd, piece, path));
    }
    return absl::OkStatus();
  }

  // The source's, with the total of the new sizes; its other metadata stays.
  absl::Status WriteIndex() {
    ASSIGN_OR_RETURN(Json index, ReadJsonFile(absl::StrCat(from_, "/", kIndex)));
    if (JsonFind(index, "metadata") == nullptr) index["metadata"] = Json::object();
    index["metadata"]["total_size"] = total_size_;
    Json map = Json::object();
    for (const auto& [tensor, file] : file_of_) map[tensor] = file;
    index["weight_map"] = std::move(map);
    return Put(kIndex, DumpJson(index, 2) + "\n");
  }

  const std::string from_, to_, temporary_;
  const TensorDtype dtype_;
  std::map<std::string, std::string> file_of_;
  int64_t total_size_ = 0, bytes_ = 0, tensors_ = 0;
};

}  // namespace

int RunExport(CommandContext& context) {
  const std::string& word = context.parsed.arguments[1];
  std::string to = context.parsed.arguments[2];
  while (to.size() > 1 && to.back() == '/') to.pop_back();
  const std::string dtype = context.parsed.Get("dtype");
  const auto wanted = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                   [&](const DtypeFlag& flag) { return dtype == flag.name; });
  if (wanted == std::end(kDtypes)) {
    const std::string near = Nearest(dtype, {"bf16", "fp16", "fp32"});
    return context.FailUsage(
        absl::StrCat("--dtype ", dtype, ": expected bf16, fp16 or fp32",
                     near.empty() ? "" : absl::StrCat(": did you mean ", near, "?")));
  }
  const std::string doing = absl::StrCat("export ", word);
  const absl::StatusOr<std::string> from = LocalFolder(context, word);
  if (!from.ok()) return FailCheckpoint(context, from.status(), doing);
  Exporter exporter(*from, to, wanted->dtype);
  const absl::Status status = exporter.Run();
  if (!status.ok()) return FailCheckpoint(context, status, doing);
  if (context.format != Format::kTable) {
    context.terminal.out << Print(Json{{"folder", to},
                                       {"dtype", dtype},
                                       {"tensors", exporter.tensors()},
                                       {"bytes", exporter.bytes()}},
                                  context.format);
  } else {
    context.terminal.out << to << ": " << exporter.tensors() << " tensors as " << dtype << ", "
                         << HumanBytes(exporter.bytes()) << "\n";
  }
  return 0;
}

}  // namespace switchyard
