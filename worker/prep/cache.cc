#include "worker/prep/cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "worker/trainer/data/token_file.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// Part of every digest: raise it when the same inputs give other tokens, masks or rows.
constexpr absl::string_view kVersion = "switchyard-prep 1";
constexpr size_t kDigestDigits = 32;

using Parts = std::vector<DatasetPart>;

// Each piece is preceded by its length, so that no two inputs run into each other.
void HashPiece(Sha256* hash, absl::string_view piece) {
  hash->Update(absl::StrCat(piece.size(), ":"));
  hash->Update(piece);
}

absl::Status HashFile(Sha256* hash, const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open", path, errno);
  std::string buffer(1 << 20, '\0');
  uint64_t total = 0;
  while (true) {
    const ssize_t count = read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus("read", path, errno);
    if (count == 0) break;
    hash->Update(absl::string_view(buffer.data(), static_cast<size_t>(count)));
    total += static_cast<uint64_t>(count);
  }
  hash->Update(absl::StrCat(":", total));
  return absl::OkStatus();
}

absl::StatusOr<std::string> Digest(const PrepConfig& config, const TextModel& model,
                                   const std::vector<Parts>& sets) {
  Sha256 hash;
  HashPiece(&hash, kVersion);
  HashPiece(&hash, DumpJson(SettingsForDigest(config)));
  HashPiece(&hash, model.chat_source);
  HashPiece(&hash, model.tool_use_source);
  if (absl::StrContains(model.chat_source, "strftime_now")) {
    HashPiece(&hash, absl::FormatTime("%Y-%m-%d", absl::Now(), absl::LocalTimeZone()));
  }
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}) {
    const std::string path = (fs::path(config.model_path) / name).string();
    std::error_code ignored;
    HashPiece(&hash, name);
    if (fs::exists(path, ignored)) RETURN_IF_ERROR(HashFile(&hash, path));
  }
  for (const Parts& parts : sets) {
    HashPiece(&hash, "set");
    for (const DatasetPart& part : parts) {
      HashPiece(&hash, "part");
      for (const std::string& file : part.files) {
        // The endings decide how a file is read.
        HashPiece(&hash, absl::StrContains(file, ".txt")    ? "txt"
                         : absl::StrContains(file, ".json") ? "json"
                                                            : "parquet");
        RETURN_IF_ERROR(HashFile(&hash, file));
      }
    }
  }
  return hash.Hex();
}

std::string ValidationFile(const std::string& name) {
  return absl::StrCat("validation-", name, ".tok");
}

// True when the folder holds all that this configuration needs, undamaged.
bool IsComplete(const fs::path& folder, const PrepConfig& config) {
  const auto sound = [&](const std::string& name) {
    return TokenFile::Open((folder / name).string(), /*verify=*/true).ok();
  };
  if (!sound("train.tok")) return false;
  for (const DatasetConfig& set : config.validation) {
    if (!sound(ValidationFile(set.name))) return false;
  }
  return true;
}

template <typename Outcome>
Outcome Failed(PrepFault fault, const absl::Status& status) {
  Outcome outcome;
  outcome.fault = fault;
  outcome.messages = {std::string(status.message())};
  return outcome;
}

// All data sets: train first.
std::vector<const DatasetConfig*> Sets(const PrepConfig& config) {
  std::vector<const DatasetConfig*> sets = {&config.train};
  for (const DatasetConfig& set : config.validation) sets.push_back(&set);
  return sets;
}

// A wrong setting for this data (FailedPrecondition) is a fault of the configuration.
PrepFault DataFault(const absl::Status& status) {
  return absl::IsFailedPrecondition(status) ? PrepFault::kConfig : PrepFault::kData;
}

absl::Status WriteFolder(const fs::path& folder, const PrepConfig& config,
                         std::vector<PreparedDataset>& sets, const std::string& fingerprint,
                         const Json& report) {
  const fs::path temporary = folder.string() + ".tmp";
  std::error_code error;
  fs::remove_all(temporary, error);  // what a killed prep left; the lock is ours
  RETURN_IF_ERROR(MakeFolders(temporary.string()));
  for (size_t i = 0; i < sets.size(); ++i) {
    const std::string name = i == 0 ? "train.tok" : ValidationFile(config.validation[i - 1].name);
    sets[i].data.fingerprint = fingerprint;
    RETURN_IF_ERROR(WriteTokenFile((temporary / name).string(), sets[i].data));
  }
  RETURN_IF_ERROR(ReplaceFile((temporary / "report.json").string(), DumpJson(report, 2) + "\n"));
  fs::remove_all(folder, error);  // damaged, or it would have been used
  fs::rename(temporary, folder, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("rename ", temporary.string(), ": ", error.message()));
  }
  return SyncFolder(folder.parent_path().string());
}

}  // namespace

PrepOutcome RunPrep(const PrepConfig& config, const std::string& cache_dir) {
  const auto failed = [](PrepFault fault, const absl::Status& status) {
    return Failed<PrepOutcome>(fault, status);
  };
  absl::StatusOr<TextModel> model = LoadTextModel(config.model_path, config.chat_template);
  if (!model.ok()) return failed(PrepFault::kConfig, model.status());
  std::vector<Parts> parts;
  for (const DatasetConfig* set : Sets(config)) {
    absl::StatusOr<Parts> resolved = ResolveDataset(*set);
    if (!resolved.ok()) return failed(PrepFault::kData, resolved.status());
    parts.push_back(*std::move(resolved));
  }
  const absl::StatusOr<std::string> digest = Digest(config, *model, parts);
  if (!digest.ok()) return failed(PrepFault::kData, digest.status());

  const fs::path folder = fs::absolute(cache_dir) / digest->substr(0, kDigestDigits);
  if (absl::Status status = MakeFolders(cache_dir); !status.ok()) {
    return failed(PrepFault::kOutput, status);
  }
  const std::string lock_path = folder.string() + ".lock";
  UniqueFd lock(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (!lock.valid() || flock(lock.get(), LOCK_EX) != 0) {
    return failed(PrepFault::kOutput, ErrnoStatus("lock", lock_path, errno));
  }
  PrepOutcome outcome;
  outcome.folder = folder.string();
  if (absl::StatusOr<Json> report = ReadJsonFile((folder / "report.json").string());
      report.ok() && IsComplete(folder, config)) {
    outcome.cached = true;
    outcome.report = *std::move(report);
    return outcome;
  }

  std::vector<PreparedDataset> sets;
  PrepReport report;
  report.fingerprint = *digest;
  for (size_t i = 0; i < parts.size(); ++i) {
    const DatasetConfig& set = *Sets(config)[i];
    absl::StatusOr<PreparedDataset> prepared = PrepareDataset(config, set, parts[i], *model);
    if (!prepared.ok()) {
      outcome.fault = DataFault(prepared.status());
      outcome.messages.push_back(std::string(prepared.status().message()));
      return outcome;
    }
    if (config.malformed_rows == MalformedRows::kFail && prepared->report.malformed > 0) {
      outcome.fault = PrepFault::kData;
      for (const std::string& example : prepared->report.malformed_examples) {
        outcome.messages.push_back(example);
      }
    }
    (i == 0 ? report.train : report.validation.emplace_back()) = prepared->report;
    sets.push_back(*std::move(prepared));
  }
  if (outcome.fault != PrepFault::kNone) return outcome;
  outcome.report = ReportJson(report);
  if (absl::Status status = WriteFolder(folder, config, sets, *digest, outcome.report);
      !status.ok()) {
    return failed(PrepFault::kOutput, status);
  }
  return outcome;
}

ValidateOutcome ValidateData(PrepConfig config) {
  config.malformed_rows = MalformedRows::kSkip;
  const absl::StatusOr<TextModel> model = LoadTextModel(config.model_path, config.chat_template);
  if (!model.ok()) return Failed<ValidateOutcome>(PrepFault::kConfig, model.status());
  ValidateOutcome outcome;
  for (const DatasetConfig* set : Sets(config)) {
    const absl::StatusOr<Parts> parts = ResolveDataset(*set);
    if (!parts.ok()) return Failed<ValidateOutcome>(PrepFault::kData, parts.status());
    absl::StatusOr<PreparedDataset> prepared = PrepareDataset(config, *set, *parts, *model);
    if (!prepared.ok()) {
      return Failed<ValidateOutcome>(DataFault(prepared.status()), prepared.status());
    }
    if (prepared->report.malformed > 0) outcome.fault = PrepFault::kData;
    DatasetReport& place =
        set == &config.train ? outcome.report.train : outcome.report.validation.emplace_back();
    place = std::move(prepared->report);
  }
  return outcome;
}

}  // namespace switchyard
