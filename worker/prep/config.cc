#include "worker/prep/config.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "worker/prep/split.h"

namespace switchyard {
namespace {

template <typename T>
using Names = std::vector<std::pair<std::string, T>>;

const Names<DatasetFormat> kFormats = {
    {"unspecified", DatasetFormat::kDetect},
    {"chat", DatasetFormat::kChat},
    {"prompt_completion", DatasetFormat::kPromptCompletion},
    {"alpaca", DatasetFormat::kAlpaca},
    {"text", DatasetFormat::kText},
    {"column_mapped", DatasetFormat::kColumnMapped},
    {"squad", DatasetFormat::kSquad},
    {"hellaswag", DatasetFormat::kHellaSwag},
};
const Names<LossMask> kLossMasks = {
    {"unspecified", LossMask::kDefault},   {"all", LossMask::kAll},
    {"assistant", LossMask::kAssistant},   {"last_turn", LossMask::kLastTurn},
    {"completion", LossMask::kCompletion},
};
const Names<Overlong> kOverlongs = {
    {"unspecified", Overlong::kTruncate},
    {"truncate", Overlong::kTruncate},
    {"drop", Overlong::kDrop},
};
const Names<Packing> kPackings = {
    {"unspecified", Packing::kNone},
    {"none", Packing::kNone},
    {"sequential", Packing::kSequential},
    {"best_fit", Packing::kBestFit},
};
const Names<MalformedRows> kMalformedRows = {
    {"unspecified", MalformedRows::kFail},
    {"fail", MalformedRows::kFail},
    {"skip", MalformedRows::kSkip},
};

// `prefix` is what the proto puts before its values: "PACKING_BEST_FIT".
template <typename T>
absl::StatusOr<T> FromName(const Names<T>& names, absl::string_view prefix,
                           const std::string& text) {
  absl::string_view bare = text;
  absl::ConsumePrefix(&bare, prefix);
  const std::string lower = absl::AsciiStrToLower(bare);
  for (const auto& [name, value] : names) {
    if (name == lower) return value;
  }
  std::vector<std::string> known;
  for (const auto& [name, value] : names) {
    if (name != "unspecified") known.push_back(name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown value '", text, "' (known: ", absl::StrJoin(known, ", "), ")"));
}

template <typename T>
std::string NameOf(const Names<T>& names, T value) {
  for (const auto& [name, known] : names) {
    if (known == value && name != "unspecified") return name;
  }
  return "default";
}

// Reads members and collects faults with the member's path.
class Reader {
 public:
  Reader(const Json& object, std::string path, std::vector<std::string>* faults)
      : object_(object), path_(std::move(path)), faults_(faults) {}

  template <typename T>
  void Get(const char* key, T* out) {
    absl::StatusOr<T> value = JsonGetOr<T>(object_, key, *out);
    if (value.ok()) {
      *out = *std::move(value);
    } else {
      Fault(key, value.status());
    }
  }

  template <typename T>
  void GetEnum(const char* key, absl::StatusOr<T> (*parse)(const std::string&), T* out) {
    std::string text;
    Get(key, &text);
    if (text.empty()) return;
    absl::StatusOr<T> value = parse(text);
    if (value.ok()) {
      *out = *value;
    } else {
      Fault(key, value.status());
    }
  }

 private:
  void Fault(const char* key, const absl::Status& status) {
    faults_->push_back(absl::StrCat(path_, ".", key, ": ", status.message()));
  }
  const Json& object_;
  std::string path_;
  std::vector<std::string>* faults_;
};

DatasetConfig ReadDataset(const Json& object, const std::string& path, std::string name,
                          std::vector<std::string>* faults) {
  DatasetConfig config;
  config.name = std::move(name);
  Reader reader(object, path, faults);
  std::string given_name;
  reader.Get("name", &given_name);
  if (!given_name.empty()) config.name = given_name;
  reader.Get("paths", &config.paths);
  reader.GetEnum("format", &ParseDatasetFormat, &config.format);
  reader.Get("split", &config.split);
  reader.Get("limit_rows", &config.limit_rows);
  reader.GetEnum("loss_mask", &ParseLossMask, &config.loss_mask);
  reader.Get("use_chat_template", &config.use_chat_template);
  if (const Json* mapping = JsonFind(object, "column_mapping"); mapping != nullptr) {
    for (const auto& [role, column] : mapping->items()) {
      if (column.is_string()) {
        config.column_mapping[role] = column.get<std::string>();
      } else {
        faults->push_back(absl::StrCat(path, ".column_mapping.", role, ": not a column's name"));
      }
    }
  }
  if (JsonFind(object, "shuffle_seed") != nullptr) {
    int64_t seed = 0;
    reader.Get("shuffle_seed", &seed);
    config.shuffle_seed = static_cast<uint32_t>(seed);
  }
  return config;
}

void ValidateDataset(const DatasetConfig& config, std::vector<std::string>* faults) {
  const std::string where = absl::StrCat("data set '", config.name, "': ");
  if (config.paths.empty()) faults->push_back(where + "no paths");
  if (config.limit_rows < 0) {
    faults->push_back(absl::StrCat(where, "limit_rows is negative: ", config.limit_rows));
  }
  if (absl::Status status = ParseSplit(config.split).status(); !status.ok()) {
    faults->push_back(absl::StrCat(where, status.message()));
  }
  for (const auto& [role, column] : config.column_mapping) {
    if (role != "context" && role != "question" && role != "answer") {
      faults->push_back(absl::StrCat(where, "column_mapping has the unknown role '", role,
                                     "' (known: context, question, answer)"));
    }
  }
  const bool mapped = config.format == DatasetFormat::kColumnMapped ||
                      (config.format == DatasetFormat::kDetect && !config.column_mapping.empty());
  if (mapped && config.column_mapping.count("answer") == 0) {
    faults->push_back(where + "column_mapping names no column for 'answer'");
  }
  if (!mapped && !config.column_mapping.empty()) {
    faults->push_back(where + "column_mapping has no effect unless the format is column_mapped");
  }
}

Json DatasetSettings(const DatasetConfig& config) {
  return Json{{"format", NameOf(kFormats, config.format)},
              {"column_mapping", config.column_mapping},
              {"split", config.split},
              {"limit_rows", config.limit_rows},
              {"loss_mask", NameOf(kLossMasks, config.loss_mask)},
              {"use_chat_template", config.use_chat_template},
              {"shuffle_seed", config.shuffle_seed ? Json(*config.shuffle_seed) : Json(nullptr)}};
}

}  // namespace

absl::StatusOr<Packing> ParsePacking(const std::string& text) {
  return FromName(kPackings, "PACKING_", text);
}
absl::StatusOr<DatasetFormat> ParseDatasetFormat(const std::string& text) {
  return FromName(kFormats, "DATASET_FORMAT_", text);
}
absl::StatusOr<LossMask> ParseLossMask(const std::string& text) {
  return FromName(kLossMasks, "LOSS_MASK_", text);
}
absl::StatusOr<Overlong> ParseOverlong(const std::string& text) {
  return FromName(kOverlongs, "OVERLONG_", text);
}
absl::StatusOr<MalformedRows> ParseMalformedRows(const std::string& text) {
  return FromName(kMalformedRows, "MALFORMED_ROWS_", text);
}

int64_t PrepConfig::RowLength() const {
  return packing == Packing::kNone || pack_length == 0 ? seq_length : pack_length;
}

int64_t PrepConfig::DocumentLimit() const {
  const int64_t row = RowLength();
  if (row == 0 || seq_length == 0) return std::max(row, seq_length);
  return std::min(row, seq_length);
}

std::vector<std::string> ValidatePrepConfig(const PrepConfig& config) {
  std::vector<std::string> faults;
  if (config.model_path.empty()) faults.push_back("model.path is empty");
  if (config.seq_length < 0 || config.seq_length == 1) {
    faults.push_back(absl::StrCat("data.seq_length must be at least 2, got ", config.seq_length));
  }
  if (config.pack_length < 0 || config.pack_length == 1) {
    faults.push_back(absl::StrCat("data.pack_length must be at least 2, got ", config.pack_length));
  }
  if (config.packing != Packing::kNone && config.RowLength() == 0) {
    faults.push_back("data.packing needs data.pack_length or data.seq_length");
  }
  ValidateDataset(config.train, &faults);
  std::set<std::string> names;
  for (const DatasetConfig& dataset : config.validation) {
    ValidateDataset(dataset, &faults);
    // The name becomes part of a file's name.
    if (dataset.name.find('/') != std::string::npos || dataset.name[0] == '.') {
      faults.push_back(absl::StrCat("validation set '", dataset.name, "': not a plain name"));
    }
    if (!names.insert(dataset.name).second) {
      faults.push_back(absl::StrCat("two validation sets are called '", dataset.name, "'"));
    }
  }
  return faults;
}

absl::StatusOr<PrepConfig> ParsePrepConfig(const Json& job) {
  static const Json kEmpty = Json::object();
  const auto section = [](const Json& object, const char* key) -> const Json& {
    const Json* found = JsonFind(object, key);
    return found == nullptr ? kEmpty : *found;
  };
  std::vector<std::string> faults;
  PrepConfig config;
  Reader(section(job, "model"), "model", &faults).Get("path", &config.model_path);
  const Json& data = section(job, "data");
  Reader reader(data, "data", &faults);
  config.train = ReadDataset(section(data, "train"), "data.train", "train", &faults);
  if (const Json* sets = JsonFind(data, "validation"); sets != nullptr && sets->is_array()) {
    for (const Json& set : *sets) {
      const std::string path = absl::StrCat("data.validation[", config.validation.size(), "]");
      config.validation.push_back(ReadDataset(set, path, "validation", &faults));
    }
  }
  reader.Get("seq_length", &config.seq_length);
  reader.GetEnum("overlong", &ParseOverlong, &config.overlong);
  reader.GetEnum("packing", &ParsePacking, &config.packing);
  reader.Get("pack_length", &config.pack_length);
  reader.GetEnum("malformed_rows", &ParseMalformedRows, &config.malformed_rows);
  reader.Get("chat_template", &config.chat_template);
  for (std::string& fault : ValidatePrepConfig(config)) faults.push_back(std::move(fault));
  if (faults.empty()) return config;
  return absl::InvalidArgumentError(absl::StrJoin(faults, "; "));
}

Json SettingsForDigest(const PrepConfig& config) {
  Json settings = {{"train", DatasetSettings(config.train)},
                   {"validation", Json::array()},
                   {"seq_length", config.seq_length},
                   {"overlong", NameOf(kOverlongs, config.overlong)},
                   {"packing", NameOf(kPackings, config.packing)},
                   {"pack_length", config.pack_length},
                   {"malformed_rows", NameOf(kMalformedRows, config.malformed_rows)}};
  for (const DatasetConfig& set : config.validation) {
    settings["validation"].push_back({{"name", set.name}, {"set", DatasetSettings(set)}});
  }
  return settings;
}

}  // namespace switchyard
