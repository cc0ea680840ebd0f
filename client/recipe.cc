#include "client/recipe.h"

#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/edit_distance.h"
#include "base/status_macros.h"
#include "client/recipe_keys.h"
#include "client/recipe_targets.h"

namespace switchyard {
namespace {

bool IsValidationSection(absl::string_view section) {
  return section == "validation_dataset" || absl::StartsWith(section, "validation_dataset_");
}

absl::string_view FirstPart(absl::string_view key) { return key.substr(0, key.find('.')); }

// Under which the table lists `key`: validation data sets share the rows of `dataset`.
std::string TablePath(const std::string& key) {
  const absl::string_view section = FirstPart(key);
  if (!IsValidationSection(section)) return key;
  return absl::StrCat("dataset", absl::string_view(key).substr(section.size()));
}

const RecipeKey* FindExact(const std::string& path) {
  for (const RecipeKey& row : RecipeKeys()) {
    if (path == row.path) return &row;
  }
  return nullptr;
}

// The "x.y.**" row with the longest x.y that is `path` or lies above it.
const RecipeKey* FindSubtree(absl::string_view path) {
  const RecipeKey* best = nullptr;
  size_t best_size = 0;
  for (const RecipeKey& row : RecipeKeys()) {
    absl::string_view prefix = row.path;
    if (!absl::EndsWith(prefix, ".**")) continue;
    prefix.remove_suffix(3);
    if ((path == prefix || absl::StartsWith(path, absl::StrCat(prefix, "."))) &&
        prefix.size() >= best_size) {
      best = &row;
      best_size = prefix.size();
    }
  }
  return best;
}

bool IsSection(const std::string& path) {
  for (const RecipeKey& row : RecipeKeys()) {
    if (absl::StartsWith(row.path, absl::StrCat(path, "."))) return true;
  }
  return false;
}

// Children of `path` in the table; of the root when it is empty.
std::vector<std::string> ChildrenOf(const std::string& path) {
  std::vector<std::string> children;
  for (const RecipeKey& row : RecipeKeys()) {
    absl::string_view rest = row.path;
    if (!path.empty()) {
      if (!absl::StartsWith(rest, absl::StrCat(path, "."))) continue;
      rest.remove_prefix(path.size() + 1);
    }
    const std::string child(FirstPart(rest));
    if (child != "**" && (children.empty() || children.back() != child)) children.push_back(child);
  }
  if (path.empty()) children.emplace_back("validation_dataset");
  return children;
}

// What the author of an unknown key may have meant, as ": did you mean ...?", or empty.
std::string Suggestion(const std::string& key) {
  const std::string path = TablePath(key);
  const size_t dot = path.rfind('.');
  const std::string parent = dot == std::string::npos ? "" : path.substr(0, dot);
  const std::string leaf = dot == std::string::npos ? path : path.substr(dot + 1);
  const std::string near = Nearest(leaf, ChildrenOf(parent));
  if (!near.empty()) {
    const size_t shown = key.rfind('.');
    const std::string prefix = shown == std::string::npos ? "" : key.substr(0, shown + 1);
    return absl::StrCat(": did you mean ", prefix, near, "?");
  }
  for (const RecipeKey& row : RecipeKeys()) {
    if (row.verdict != Verdict::kRefused && absl::EndsWith(row.path, absl::StrCat(".", leaf))) {
      return absl::StrCat(": did you mean ", row.path, "?");
    }
  }
  return "";
}

bool LooksLikeHubId(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, '/');
  if (parts.size() != 2) return false;
  for (absl::string_view part : parts) {
    if (part.empty() || part[0] == '.' || part[0] == '~') return false;
    for (char c : part) {
      if (!absl::ascii_isalnum(c) && c != '-' && c != '_' && c != '.') return false;
    }
  }
  for (const char* suffix : {".jsonl", ".json", ".ndjson", ".parquet", ".txt", ".gz", ".zst"}) {
    if (absl::EndsWith(text, suffix)) return false;
  }
  return true;
}

// For the report: a scalar, a list of them, or the names of a section's keys and values.
std::string ShowValue(const YamlNode& node) {
  std::string out;
  const auto add = [&out](absl::string_view text) {
    absl::StrAppend(&out, out.empty() ? "" : ", ", text);
  };
  if (node.is_scalar()) return node.text;
  for (const YamlNode& item : node.items) add(ShowValue(item));
  for (const auto& [key, value] : node.members) add(absl::StrCat(key, ": ", ShowValue(value)));
  return node.is_list() ? absl::StrCat("[", out, "]") : absl::StrCat("{", out, "}");
}

// Sets `path` absolute, or refuses.
bool ReadPath(const std::string& text, Setting& s, std::string& path) {
  if (absl::StartsWith(text, "~")) {
    s.Refuse(absl::StrCat(text, ": ~ is not expanded; write ${HOME}"));
    return false;
  }
  if (absl::StrContains(text, "://")) {
    s.Refuse(absl::StrCat(text, ": nothing is downloaded; download it and give the path"));
    return false;
  }
  path = absl::StartsWith(text, "/") ? text : absl::StrCat(s.draft.options.folder, "/", text);
  path = std::filesystem::path(path).lexically_normal().string();
  if (text[0] != '/' && LooksLikeHubId(text) && !s.draft.options.exists(path)) {
    s.Refuse(
        absl::StrCat(text, ": there is no ", path,
                     ", and a Hugging Face id is not resolved: download it and give the path"));
    return false;
  }
  return true;
}

// "expected X, found Y".
void RefuseValue(Setting& s, absl::string_view expected) {
  s.Refuse(absl::StrCat("expected ", expected, ", found ", Describe(s.node)));
}

bool CheckRange(const RecipeKey& row, double number, Setting& s) {
  if (row.max > row.min && !(number >= row.min && number <= row.max)) {
    s.Refuse(absl::StrFormat("%.15g is outside %.15g to %.15g", number, row.min, row.max));
    return false;
  }
  return true;
}

bool ReadChoice(const RecipeKey& row, Setting& s) {
  absl::string_view text = s.node.text;
  if (absl::StartsWith(text, "torch.")) text.remove_prefix(6);
  const std::vector<std::string> choices = absl::StrSplit(row.choices, '|');
  for (const std::string& choice : choices) {
    if (absl::EqualsIgnoreCase(text, choice)) {
      s.text = choice;
      return true;
    }
  }
  const std::string near = Nearest(text, choices);
  std::string list;
  for (const std::string& choice : choices)
    absl::StrAppend(&list, list.empty() ? "" : ", ", choice);
  RefuseValue(s, absl::StrCat("one of ", list));
  if (!near.empty()) absl::StrAppend(&s.report.note, ": did you mean ", near, "?");
  return false;
}

bool ReadTarget(const RecipeKey& row, Setting& s) {
  std::string key = row.path;
  if (key == "recipe._target_") key = "recipe";
  if (absl::EndsWith(key, ".collate_fn._target_")) key = "dataloader.collate_fn";
  std::string suggestion;
  const RecipeTarget* target = FindTarget(key, s.node.text, suggestion);
  if (target == nullptr) {
    s.Refuse(
        absl::StrCat(Describe(s.node), " is not in the table of names",
                     suggestion.empty() ? "" : absl::StrCat(": did you mean ", suggestion, "?"),
                     "; nothing is imported from a recipe"));
    return false;
  }
  if (target->refused != nullptr) {
    s.Refuse(absl::StrCat(target->symbol, ": ", target->refused));
    return false;
  }
  s.text = target->symbol;
  return true;
}

// Reads the node as the row's type. False: refused.
bool ReadValue(const RecipeKey& row, Setting& s) {
  const YamlNode& node = s.node;
  if (row.type != ValueType::kAny && row.type != ValueType::kPaths &&
      row.type != ValueType::kNumbers && row.type != ValueType::kStringMap && !node.is_scalar()) {
    RefuseValue(s, "a single value");
    return false;
  }
  switch (row.type) {
    case ValueType::kAny:
      return true;
    case ValueType::kBool:
      if (const std::optional<bool> value = AsBool(node)) {
        s.flag = *value;
        return true;
      }
      RefuseValue(s, "true or false");
      return false;
    case ValueType::kInteger:
      if (const std::optional<int64_t> value = AsInteger(node)) {
        s.integer = *value;
        s.number = static_cast<double>(*value);
        return CheckRange(row, s.number, s);
      }
      RefuseValue(s, "an integer");
      return false;
    case ValueType::kNumber:
      if (const std::optional<double> value = AsNumber(node)) {
        s.number = *value;
        return CheckRange(row, s.number, s);
      }
      RefuseValue(s, "a number");
      return false;
    case ValueType::kString:
      if (node.text.empty()) {
        RefuseValue(s, "text");
        return false;
      }
      s.text = node.text;
      return true;
    case ValueType::kPath:
      if (node.text.empty()) {
        RefuseValue(s, "a path");
        return false;
      }
      return ReadPath(node.text, s, s.text);
    case ValueType::kPaths: {
      const std::vector<YamlNode> one = {node};
      const std::vector<YamlNode>& items = node.is_list() ? node.items : one;
      for (const YamlNode& item : items) {
        if (!item.is_scalar() || item.text.empty()) {
          RefuseValue(s, "a path or a list of paths");
          return false;
        }
        s.paths.emplace_back();
        if (!ReadPath(item.text, s, s.paths.back())) return false;
      }
      if (s.paths.empty()) RefuseValue(s, "at least one path");
      return !s.paths.empty();
    }
    case ValueType::kNumbers:
      if (!node.is_list()) {
        RefuseValue(s, "a list of numbers");
        return false;
      }
      for (const YamlNode& item : node.items) {
        const std::optional<double> value = AsNumber(item);
        if (!value.has_value()) {
          s.Refuse(absl::StrCat("expected a number, found ", Describe(item)));
          return false;
        }
        s.numbers.push_back(*value);
      }
      return true;
    case ValueType::kStringMap:
      if (!node.is_map()) {
        RefuseValue(s, "a section");
        return false;
      }
      for (const auto& [key, value] : node.members) {
        if (!value.is_scalar()) {
          s.Refuse(absl::StrCat(key, ": expected text, found ", Describe(value)));
          return false;
        }
        if (!IsNull(value)) s.strings[key] = value.text;
      }
      return true;
    case ValueType::kTarget:
      return ReadTarget(row, s);
    case ValueType::kChoice:
      return ReadChoice(row, s);
  }
  return false;
}

class Reader {
 public:
  explicit Reader(RecipeDraft& draft) : draft_(draft) {}

  void ReadSections(const YamlNode& root) {
    for (const auto& [name, node] : root.members) {
      dataset_ = nullptr;
      if (name == "dataset") dataset_ = draft_.spec.mutable_data()->mutable_train();
      if (IsValidationSection(name) && !IsNull(node)) {
        dataset_ = draft_.spec.mutable_data()->add_validation();
        // validation_dataset_math is "math".
        dataset_->set_name(name == "validation_dataset" ? "validation" : name.substr(19));
      }
      switched_off_ = IsSwitchedOff(node);
      Visit(name, node);
    }
  }

 private:
  static bool IsSwitchedOff(const YamlNode& section) {
    for (const char* word : {"enabled", "enable"}) {
      const YamlNode* value = section.Find(word);
      if (value != nullptr && AsBool(*value) == false) return true;
    }
    return false;
  }

  ReportLine& Report(const std::string& key, const YamlNode& node, Verdict verdict,
                     std::string note) {
    draft_.recipe.report.push_back({key, verdict, std::move(note), node.line});
    return draft_.recipe.report.back();
  }

  void Visit(const std::string& key, const YamlNode& node) {
    const std::string path = TablePath(key);
    const RecipeKey* row = FindExact(path);
    const bool takes_map = row != nullptr && (row->type == ValueType::kStringMap ||
                                              row->type == ValueType::kAny || !IsSection(path));
    if (node.is_map() && !takes_map) {
      if (node.members.empty()) Report(key, node, Verdict::kIgnored, "empty");
      for (const auto& [name, child] : node.members) Visit(absl::StrCat(key, ".", name), child);
      return;
    }
    if (row == nullptr) row = FindSubtree(path);
    if (row == nullptr) {
      if (!IsSection(path)) {
        Report(key, node, Verdict::kRefused, absl::StrCat("unknown key", Suggestion(key)));
      } else if (IsNull(node)) {
        Report(key, node, Verdict::kIgnored, "null: as if it were not there");
      } else {
        Report(key, node, Verdict::kRefused,
               absl::StrCat("expected a section, found ", Describe(node)));
      }
      return;
    }
    Apply(*row, key, node);
  }

  void Apply(const RecipeKey& row, const std::string& key, const YamlNode& node) {
    const bool subtree = absl::EndsWith(row.path, ".**");
    if (subtree && switched_off_) {
      Report(key, node, Verdict::kIgnored, "switched off");
      return;
    }
    if (IsNull(node)) {
      if (key == "clip_grad_norm.max_norm") {
        draft_.spec.mutable_optimizer()->set_max_grad_norm(0);
        draft_.given[key] = &node;
        Report(key, node, Verdict::kUsed, "null: no clipping");
      } else {
        Report(key, node, Verdict::kIgnored, "null: as if it were not there");
      }
      return;
    }
    ReportLine& line = Report(key, node, row.verdict, row.what);
    if (row.verdict == Verdict::kUsed) line.note = absl::StrCat("= ", ShowValue(node));
    // A subtree's verdict needs no value; what a refusing row accepts is decided in its function.
    Setting setting{draft_, key, dataset_, node, false, 0, 0, {}, {}, {}, {}, line};
    if (!ReadValue(row, setting)) return;
    draft_.given[key] = &node;
    if (row.type == ValueType::kTarget && row.verdict == Verdict::kUsed) {
      line.note = absl::StrCat("= ", setting.text);
    }
    if (row.type == ValueType::kPath && row.verdict == Verdict::kUsed) {
      line.note = absl::StrCat("= ", setting.text);
    }
    if (row.type == ValueType::kPaths) {
      std::string list;
      for (const std::string& path : setting.paths) {
        absl::StrAppend(&list, list.empty() ? "" : ", ", path);
      }
      line.note = absl::StrCat("= ", list);
    }
    if (row.apply != nullptr) row.apply(setting);
  }

  RecipeDraft& draft_;
  v1::DatasetSpec* dataset_ = nullptr;
  bool switched_off_ = false;
};

}  // namespace

const char* VerdictName(Verdict verdict) {
  switch (verdict) {
    case Verdict::kUsed:
      return "used";
    case Verdict::kIgnored:
      return "ignored";
    case Verdict::kRefused:
      return "refused";
    case Verdict::kDefault:
      return "default";
  }
  return "";
}

int Recipe::num_refused() const {
  int count = 0;
  for (const ReportLine& line : report) count += line.verdict == Verdict::kRefused;
  return count;
}

void Setting::Ignore(std::string why) {
  report.verdict = Verdict::kIgnored;
  report.note = std::move(why);
}

void Setting::Refuse(std::string why) {
  report.verdict = Verdict::kRefused;
  report.note = std::move(why);
}

absl::StatusOr<Recipe> ReadRecipe(absl::string_view text, const RecipeOptions& given_options) {
  RecipeOptions options = given_options;
  if (!options.env) {
    options.env = [](const std::string& name) -> std::optional<std::string> {
      const char* value = std::getenv(name.c_str());
      if (value == nullptr) return std::nullopt;
      return value;
    };
  }
  if (!options.exists) {
    options.exists = [](const std::string& path) {
      struct stat info;
      return ::stat(path.c_str(), &info) == 0;
    };
  }
  ASSIGN_OR_RETURN(YamlNode root, ParseYaml(text, options.name));
  for (const std::string& assignment : options.overrides) {
    RETURN_IF_ERROR(ApplyOverride(root, assignment));
  }
  RETURN_IF_ERROR(InterpolateEnvironment(root, options.name, options.env));
  RecipeDraft draft(options);
  Reader(draft).ReadSections(root);
  FinishDraft(draft);
  return std::move(draft.recipe);
}

}  // namespace switchyard
