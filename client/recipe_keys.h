// The closed table of what a recipe may say. One row is one key: its place, the values it takes,
// what it does or why it does nothing, and the function that puts it into the draft.
#ifndef SWITCHYARD_CLIENT_RECIPE_KEYS_H_
#define SWITCHYARD_CLIENT_RECIPE_KEYS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "client/recipe.h"
#include "client/recipe_yaml.h"

namespace switchyard {

enum class ValueType {
  kBool,
  kInteger,
  kNumber,
  kString,
  kPath,       // a local file or folder; a Hugging Face id is refused with advice
  kPaths,      // one or several
  kNumbers,    // a list of numbers
  kStringMap,  // a section of strings
  kTarget,     // a `_target_` or dotted name of the closed table recipe_targets.h
  kChoice,     // one of `choices`, separated by '|'
  kAny,        // whatever; the row's verdict needs no value
};

struct RecipeDraft;

// One key of the file on its way into the draft. The value has the row's type and range.
struct Setting {
  RecipeDraft& draft;
  const std::string& key;              // dotted, as in the file
  v1::DatasetSpec* dataset = nullptr;  // of the section, for keys below dataset or validation_*
  const YamlNode& node;
  bool flag = false;    // kBool
  int64_t integer = 0;  // kInteger
  double number = 0;    // kInteger, kNumber
  std::string text;     // kString, kPath (absolute), kTarget (its canonical symbol), kChoice
  std::vector<std::string> paths;              // kPaths
  std::vector<double> numbers;                 // kNumbers
  std::map<std::string, std::string> strings;  // kStringMap
  ReportLine& report;  // verdict and note are the row's; Apply may change them

  void Ignore(std::string why);
  void Refuse(std::string why);
  void Note(std::string note) { report.note = std::move(note); }
};

struct RecipeKey {
  // "section.key". A path below "dataset." also holds for validation_dataset and
  // validation_dataset_<name>. "section.**" holds for all that lies below and has no row.
  const char* path;
  ValueType type;
  Verdict verdict;
  const char* what;  // what it does; for ignored and refused: why
  void (*apply)(Setting&) = nullptr;
  double min = 0, max = 0;   // of a number, when max > min
  const char* choices = "";  // of a kChoice
};

// All rows, in the order of the documentation.
const std::vector<RecipeKey>& RecipeKeys();
void AppendTrainingKeys(std::vector<RecipeKey>& keys);  // recipe_training_keys.cc
void AppendDataKeys(std::vector<RecipeKey>& keys);      // recipe_data_keys.cc
void AppendOtherKeys(std::vector<RecipeKey>& keys);     // recipe_other_keys.cc

// What several keys decide together; read by FinishDraft.
struct RecipeDraft {
  explicit RecipeDraft(const RecipeOptions& options) : options(options) {}
  const RecipeOptions& options;
  Recipe recipe;
  v1::JobSpec& spec = recipe.spec;
  std::map<std::string, const YamlNode*> given;  // keys of the file with a value, not null

  std::optional<uint32_t> rng_seed;
  int64_t dp_size = 0;
  bool packing_set = false;
  int pack_strategy = 0;  // v1::Packing; 0: not given
  bool checkpoints_off = false;
  std::string optimizer = "AdamW";  // canonical symbol
  bool adam_w_mode = true;
  std::optional<bool> truncate;
  std::map<std::string, double> start_end_weight_decay;  // key -> value
  std::map<std::string, std::string> moment_dtypes;      // key -> dtype
  // Keys that several data sections may say, though the job has one: key -> value.
  std::map<std::string, int64_t> seq_lengths;
  std::map<std::string, std::string> chat_templates;
  std::map<std::string, std::string> tokenizers;

  bool Given(const std::string& key) const { return given.count(key) > 0; }
  // Marks the key's line as refused, or adds one.
  void Refuse(const std::string& key, const std::string& why);
  void Ignore(const std::string& key, const std::string& why);
  void Default(const std::string& key, const std::string& what);
};

// Defaults, rules over several keys, required keys.
void FinishDraft(RecipeDraft& draft);

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_RECIPE_KEYS_H_
