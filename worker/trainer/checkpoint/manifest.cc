#include "worker/trainer/checkpoint/manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

Json NumberOrNull(std::optional<double> value) {
  return value.has_value() && std::isfinite(*value) ? Json(*value) : Json(nullptr);
}

// Prefixes the error of a field with the text it is in; a missing field is a broken text.
absl::Status InText(absl::string_view what, const absl::Status& status) {
  return absl::InvalidArgumentError(absl::StrCat(what, ": ", status.message()));
}

template <typename T>
absl::Status Take(const Json& object, const char* key, absl::string_view what, T* out) {
  absl::StatusOr<T> value = JsonGet<T>(object, key);
  if (!value.ok()) return InText(what, value.status());
  *out = *std::move(value);
  return absl::OkStatus();
}

absl::Status TakeOptional(const Json& object, const char* key, absl::string_view what,
                          std::optional<double>* out) {
  const absl::StatusOr<double> value = JsonGet<double>(object, key);
  if (absl::IsNotFound(value.status())) return absl::OkStatus();
  if (!value.ok()) return InText(what, value.status());
  *out = *value;
  return absl::OkStatus();
}

absl::StatusOr<Json> ParseVersion1(absl::string_view text, absl::string_view what) {
  ASSIGN_OR_RETURN(Json json, ParseJson(text, what));
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": expected a JSON object"));
  }
  int64_t version = 0;
  RETURN_IF_ERROR(Take(json, "version", what, &version));
  if (version != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": version ", version, ", this program reads version 1"));
  }
  return json;
}

// Relative, and inside the folder.
bool IsInnerPath(const std::string& name) {
  if (name.empty() || name.find('\0') != std::string::npos) return false;
  for (absl::string_view part : absl::StrSplit(name, '/')) {
    if (part.empty() || part == "." || part == "..") return false;
  }
  return true;
}

}  // namespace

std::string DumpManifest(const Manifest& manifest) {
  Json files = Json::array();
  for (const ManifestFile& file : manifest.files) {
    files.push_back({{"name", file.name},
                     {"size", file.size},
                     {"crc32c", absl::StrFormat("%08x", file.crc32c)}});
  }
  const Json json = {{"version", 1},
                     {"job", manifest.job},
                     {"job_uid", manifest.job_uid},
                     {"attempt", manifest.attempt},
                     {"step", manifest.step},
                     {"final", manifest.final},
                     {"world_size", manifest.world_size},
                     {"ep_size", manifest.ep_size},
                     {"loss", NumberOrNull(manifest.loss)},
                     {"validation_loss", NumberOrNull(manifest.validation_loss)},
                     {"files", files}};
  return DumpJson(json, 2) + "\n";
}

absl::StatusOr<Manifest> ParseManifest(absl::string_view text, absl::string_view what) {
  ASSIGN_OR_RETURN(const Json json, ParseVersion1(text, what));
  Manifest manifest;
  RETURN_IF_ERROR(Take(json, "job", what, &manifest.job));
  RETURN_IF_ERROR(Take(json, "job_uid", what, &manifest.job_uid));
  RETURN_IF_ERROR(Take(json, "attempt", what, &manifest.attempt));
  RETURN_IF_ERROR(Take(json, "step", what, &manifest.step));
  RETURN_IF_ERROR(Take(json, "final", what, &manifest.final));
  RETURN_IF_ERROR(Take(json, "world_size", what, &manifest.world_size));
  RETURN_IF_ERROR(Take(json, "ep_size", what, &manifest.ep_size));
  RETURN_IF_ERROR(TakeOptional(json, "loss", what, &manifest.loss));
  RETURN_IF_ERROR(TakeOptional(json, "validation_loss", what, &manifest.validation_loss));
  const Json* files = JsonFind(json, "files");
  if (files == nullptr || !files->is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": files must be an array"));
  }
  for (const Json& entry : *files) {
    ManifestFile file;
    std::string crc;
    if (!entry.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": files must hold objects"));
    }
    RETURN_IF_ERROR(Take(entry, "name", what, &file.name));
    RETURN_IF_ERROR(Take(entry, "size", what, &file.size));
    RETURN_IF_ERROR(Take(entry, "crc32c", what, &crc));
    if (!IsInnerPath(file.name) || file.name == kManifestName || file.size < 0 || crc.size() != 8 ||
        !absl::SimpleHexAtoi(crc, &file.crc32c)) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": not a file entry: ", DumpJson(entry)));
    }
    if (!manifest.files.empty() && manifest.files.back().name >= file.name) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": files must be sorted, '", file.name,
                                                     "' follows '", manifest.files.back().name,
                                                     "'"));
    }
    manifest.files.push_back(std::move(file));
  }
  return manifest;
}

absl::StatusOr<Manifest> ReadManifest(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/", kManifestName);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseManifest(text, path);
}

absl::Status CheckFileSizes(const std::string& folder, const Manifest& manifest) {
  for (const ManifestFile& file : manifest.files) {
    const std::string path = absl::StrCat(folder, "/", file.name);
    struct stat st;
    if (::stat(path.c_str(), &st) != 0) {
      return absl::DataLossError(absl::StrCat(
          path, ": the manifest lists it, but: ", ErrnoStatus("stat", "", errno).message()));
    }
    if (!S_ISREG(st.st_mode) || st.st_size != file.size) {
      return absl::DataLossError(
          absl::StrCat(path, ": ", st.st_size, " bytes, the manifest states ", file.size));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> FileCrc32c(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open", path, errno);
  constexpr size_t kChunkBytes = 4 << 20;
  const std::unique_ptr<char[]> buffer(new char[kChunkBytes]);
  uint32_t crc = 0;
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer.get(), kChunkBytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("read", path, errno);
    if (n == 0) return crc;
    crc = Crc32c(crc, buffer.get(), static_cast<size_t>(n));
  }
}

std::string DumpTrainState(const TrainState& state) {
  const Json json = {{"version", 1},
                     {"step", state.step},
                     {"seed", state.seed},
                     {"dataset_fingerprint", state.dataset_fingerprint},
                     {"global_batch_size", state.global_batch_size},
                     {"tokens_seen", state.tokens_seen},
                     {"skipped_total", state.skipped_total},
                     {"nonfinite_in_a_row", state.nonfinite_in_a_row},
                     {"lr_schedule", state.lr_schedule},
                     {"torch_version", state.torch_version}};
  return DumpJson(json, 2) + "\n";
}

absl::StatusOr<TrainState> ParseTrainState(absl::string_view text, absl::string_view what) {
  ASSIGN_OR_RETURN(const Json json, ParseVersion1(text, what));
  TrainState state;
  int64_t seed = 0;
  RETURN_IF_ERROR(Take(json, "step", what, &state.step));
  RETURN_IF_ERROR(Take(json, "seed", what, &seed));
  RETURN_IF_ERROR(Take(json, "dataset_fingerprint", what, &state.dataset_fingerprint));
  RETURN_IF_ERROR(Take(json, "global_batch_size", what, &state.global_batch_size));
  RETURN_IF_ERROR(Take(json, "tokens_seen", what, &state.tokens_seen));
  RETURN_IF_ERROR(Take(json, "skipped_total", what, &state.skipped_total));
  RETURN_IF_ERROR(Take(json, "nonfinite_in_a_row", what, &state.nonfinite_in_a_row));
  RETURN_IF_ERROR(Take(json, "torch_version", what, &state.torch_version));
  if (seed < 0 || seed > int64_t{0xffffffff} || state.step < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": step ", state.step, " or seed ", seed, " is out of range"));
  }
  state.seed = static_cast<uint32_t>(seed);
  if (const Json* schedule = JsonFind(json, "lr_schedule")) state.lr_schedule = *schedule;
  return state;
}

absl::StatusOr<TrainState> ReadTrainState(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/", kTrainStateName);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseTrainState(text, path);
}

}  // namespace switchyard
