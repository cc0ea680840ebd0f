#include "client/recipe_keys.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "client/recipe_targets.h"

namespace switchyard {
namespace {

std::string ValueText(const RecipeKey& row) {
  if (absl::EndsWith(row.path, ".**")) return "anything";
  switch (row.type) {
    case ValueType::kBool:
      return "true, false";
    case ValueType::kInteger:
    case ValueType::kNumber: {
      const char* kind = row.type == ValueType::kInteger ? "integer" : "number";
      if (row.max <= row.min) return kind;
      return absl::StrFormat("%s, %.15g to %.15g", kind, row.min, row.max);
    }
    case ValueType::kString:
      return "text";
    case ValueType::kPath:
      return "path";
    case ValueType::kPaths:
      return "path or list of paths";
    case ValueType::kNumbers:
      return "list of numbers";
    case ValueType::kStringMap:
      return "section of text";
    case ValueType::kTarget:
      return "name";
    case ValueType::kChoice:
      return absl::StrReplaceAll(row.choices, {{"|", ", "}});
    case ValueType::kAny:
      return "anything";
  }
  return "";
}

}  // namespace

const std::vector<RecipeKey>& RecipeKeys() {
  static const auto& keys = *[] {
    auto* made = new std::vector<RecipeKey>();
    AppendTrainingKeys(*made);
    AppendDataKeys(*made);
    AppendOtherKeys(*made);
    return made;
  }();
  return keys;
}

std::string RecipeKeysMarkdown() {
  std::string out = "| key | value | verdict | what it does, or why not |\n|---|---|---|---|\n";
  for (const RecipeKey& row : RecipeKeys()) {
    absl::StrAppend(&out, "| `", row.path, "` | ", ValueText(row), " | ", VerdictName(row.verdict),
                    " | ", absl::StrReplaceAll(row.what, {{"|", "\\|"}}), " |\n");
  }
  absl::StrAppend(&out, "\n### Names\n\n| key | name | what we do for it |\n|---|---|---|\n");
  for (const RecipeTarget& target : RecipeTargets()) {
    absl::StrAppend(&out, "| `", target.key, "` | `", target.package, ".….", target.symbol, "` | ",
                    target.refused == nullptr ? std::string(target.what)
                                              : absl::StrCat("refused: ", target.refused),
                    " |\n");
  }
  return out;
}

}  // namespace switchyard
