// What prep is asked to do: the parts of a JobSpec that decide the content of a token file.
#ifndef SWITCHYARD_WORKER_PREP_CONFIG_H_
#define SWITCHYARD_WORKER_PREP_CONFIG_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/json.h"

namespace switchyard {

// Values as in proto/switchyard/v1/job.proto, whose comments say what they mean.
enum class DatasetFormat {
  kDetect,
  kChat,
  kPromptCompletion,
  kAlpaca,
  kText,
  kColumnMapped,
  kSquad,
  kHellaSwag,
};
enum class LossMask { kDefault, kAll, kAssistant, kLastTurn, kCompletion };
enum class Overlong { kTruncate, kDrop };
enum class Packing { kNone, kSequential, kBestFit };
enum class MalformedRows { kFail, kSkip };

struct DatasetConfig {
  std::string name;  // "train", or the name of a validation set
  std::vector<std::string> paths;
  DatasetFormat format = DatasetFormat::kDetect;
  std::map<std::string, std::string> column_mapping;  // context, question, answer -> column
  std::string split;
  int64_t limit_rows = 0;  // 0: all
  LossMask loss_mask = LossMask::kDefault;
  bool use_chat_template = false;
  std::optional<uint32_t> shuffle_seed;
};

struct PrepConfig {
  std::string model_path;  // folder with the tokenizer files
  DatasetConfig train;
  std::vector<DatasetConfig> validation;
  int64_t seq_length = 0;  // longest sample in tokens; 0: no limit
  Overlong overlong = Overlong::kTruncate;
  Packing packing = Packing::kNone;
  int64_t pack_length = 0;  // 0: seq_length
  MalformedRows malformed_rows = MalformedRows::kFail;
  std::string chat_template;  // inline Jinja, a path, or empty: the tokenizer's

  // Capacity of a row in tokens; 0: no limit (only without packing).
  int64_t RowLength() const;
  // Longest document that is kept whole.
  int64_t DocumentLimit() const;
};

// Reads protobuf JSON of a JobSpec. Errors: InvalidArgument with all faults, joined by "; ".
absl::StatusOr<PrepConfig> ParsePrepConfig(const Json& job);

// Parsers of the command line's spellings: "none", "sequential", "best_fit" and so on, or the
// enum names of the proto. Errors: InvalidArgument with the known values.
absl::StatusOr<Packing> ParsePacking(const std::string& text);
absl::StatusOr<DatasetFormat> ParseDatasetFormat(const std::string& text);
absl::StatusOr<LossMask> ParseLossMask(const std::string& text);
absl::StatusOr<Overlong> ParseOverlong(const std::string& text);
absl::StatusOr<MalformedRows> ParseMalformedRows(const std::string& text);

// The checks on numbers and combinations, all of them; ParsePrepConfig runs it too.
std::vector<std::string> ValidatePrepConfig(const PrepConfig& config);

// Everything but paths that decides the token file's content, for the cache's digest.
Json SettingsForDigest(const PrepConfig& config);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_CONFIG_H_
