// YAML as recipes use it: a tree of text with line numbers, read under strict limits, and the rules
// by which AutoModel gives scalars their types. Nothing is imported, resolved or executed.
#ifndef SWITCHYARD_CLIENT_RECIPE_YAML_H_
#define SWITCHYARD_CLIENT_RECIPE_YAML_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

struct YamlNode {
  enum class Kind { kScalar, kList, kMap };
  Kind kind = Kind::kScalar;
  std::string text;     // of a scalar, quotes removed
  bool quoted = false;  // 'x', "x" or a block scalar
  std::vector<YamlNode> items;
  std::vector<std::pair<std::string, YamlNode>> members;  // in the file's order, keys unique
  int line = 0;                                           // from 1; 0: came from an override

  bool is_scalar() const { return kind == Kind::kScalar; }
  bool is_list() const { return kind == Kind::kList; }
  bool is_map() const { return kind == Kind::kMap; }
  const YamlNode* Find(absl::string_view key) const;
};

struct YamlLimits {
  size_t bytes = 1 << 20;
  int depth = 32;
  int nodes = 10000;
};

// One document whose root is a map. `what` names the text in errors, which are InvalidArgument as
// "recipe.yaml:12: ...": a syntax error, a limit passed (both numbers), an anchor, an alias, a tag,
// a duplicate or composite key, a second document.
absl::StatusOr<YamlNode> ParseYaml(absl::string_view text, absl::string_view what,
                                   const YamlLimits& limits = {});

// Puts `value` at a dotted path, making the maps on the way. A value that starts with [ { " or ' is
// read as YAML, any other is a plain scalar as it stands. `assignment` is "a.b=c".
// Errors: InvalidArgument: no '=', an empty part, a part of the path that is not a map.
absl::Status ApplyOverride(YamlNode& root, absl::string_view assignment);

// Replaces ${VAR}, ${VAR,default} and $VAR in every scalar; $$ is a dollar sign, and a dollar
// before anything else stays. `env` answers nullopt for an unset variable. Errors: InvalidArgument
// with the line: unset without a default, or no closing brace.
absl::Status InterpolateEnvironment(
    YamlNode& root, absl::string_view what,
    const std::function<std::optional<std::string>(const std::string&)>& env);

// A scalar's type as AutoModel's reader sees it: first YAML 1.1, then, for quoted text too,
// Python's literals: "None" is null, "true" a bool, "1e-8" and "1_000" numbers.
bool IsNull(const YamlNode& node);
std::optional<bool> AsBool(const YamlNode& node);
std::optional<int64_t> AsInteger(const YamlNode& node);
std::optional<double> AsNumber(const YamlNode& node);  // an integer is a number too

// For messages: "a list", "a section", or the text, cut after 60 characters.
std::string Describe(const YamlNode& node);

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_RECIPE_YAML_H_
