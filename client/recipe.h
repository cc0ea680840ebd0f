// Reads a recipe: AutoModel's vocabulary, from a closed table, into a JobSpec, with a verdict on
// every key of the file. docs/recipes.md is the table; recipe_keys.h is where it lives.
#ifndef SWITCHYARD_CLIENT_RECIPE_H_
#define SWITCHYARD_CLIENT_RECIPE_H_

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "switchyard/v1/job.pb.h"

namespace switchyard {

enum class Verdict {
  kUsed,     // it is in the JobSpec
  kIgnored,  // it changes nothing that the job computes; the note says why
  kRefused,  // unknown, or the job would not be what the recipe says
  kDefault,  // not in the file; the note says what holds
};
// "used", "ignored", "refused", "default".
const char* VerdictName(Verdict verdict);

struct ReportLine {
  std::string key;  // dotted
  Verdict verdict = Verdict::kUsed;
  std::string note;
  int line = 0;  // in the file; 0: from --set, or not there
};

struct Recipe {
  v1::JobSpec spec;  // whole only when nothing is refused
  std::string display_name;
  std::map<std::string, std::string> labels;
  std::vector<ReportLine>
      report;  // the file's keys in its order, then what is missing, then defaults
  int num_refused() const;
};

struct RecipeOptions {
  std::string name = "recipe";         // for messages
  std::string folder = ".";            // absolute; relative paths in the recipe start here
  std::vector<std::string> overrides;  // "a.b=c", applied in order
  // Both have defaults that ask this process and this machine.
  std::function<std::optional<std::string>(const std::string&)> env;
  std::function<bool(const std::string& path)> exists;
};

// Errors: InvalidArgument only for text that cannot be read at all (recipe_yaml.h) or a bad
// override; everything else is a refused line of the report.
absl::StatusOr<Recipe> ReadRecipe(absl::string_view text, const RecipeOptions& options);

// Turns into refusals what is not there on this machine: the model folder and its config.json,
// tokenizer.json and weights, each data file. For globs the folder is checked.
void RefuseMissingFiles(Recipe& recipe);

// The table of keys as docs/recipes.md holds it.
std::string RecipeKeysMarkdown();

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_RECIPE_H_
