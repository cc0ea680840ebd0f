#include "worker/trainer/checkpoint/side_files.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

absl::string_view ConfigDtype(TensorDtype dtype) {
  switch (dtype) {
    case TensorDtype::kBf16:
      return "bfloat16";
    case TensorDtype::kF16:
      return "float16";
    default:
      return "float32";
  }
}

size_t SkipSpace(absl::string_view text, size_t at) {
  while (at < text.size() &&
         (text[at] == ' ' || text[at] == '\n' || text[at] == '\r' || text[at] == '\t')) {
    ++at;
  }
  return at;
}

// One past the string that starts at `at`.
size_t SkipString(absl::string_view text, size_t at) {
  for (++at; at < text.size() && text[at] != '"'; ++at) {
    if (text[at] == '\\') ++at;
  }
  return at + 1;
}

// One past the value that starts at `at`. The text is known to be valid JSON.
size_t SkipValue(absl::string_view text, size_t at) {
  int depth = 0;
  while (at < text.size()) {
    const char c = text[at];
    if (c == '"') {
      at = SkipString(text, at);
      if (depth == 0) return at;
      continue;
    }
    if (depth == 0 && (c == ',' || c == '}')) break;
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    ++at;
    if (depth == 0 && (c == '}' || c == ']')) return at;
  }
  while (at > 0 && SkipSpace(text, at - 1) != at - 1) --at;  // a number or word: without the space
  return at;
}

bool IsSideFile(const std::string& name) {
  static constexpr const char* kNames[] = {"generation_config.json",
                                           "tokenizer.json",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "added_tokens.json",
                                           "vocab.json",
                                           "merges.txt",
                                           "tokenizer.model",
                                           "tekken.json",
                                           "chat_template.jinja",
                                           "chat_template.json"};
  if (std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames)) return true;
  if (absl::EndsWith(name, ".py")) {
    return absl::StartsWith(name, "modeling_") || absl::StartsWith(name, "configuration_") ||
           absl::StartsWith(name, "tokenization_");
  }
  return name == "NOTICE" || name == "LICENSE" || absl::StartsWith(name, "LICENSE.");
}

absl::Status CollectFolder(const fs::path& folder, const std::string& prefix,
                           bool (*wanted)(const std::string&), std::vector<std::string>& names) {
  std::error_code error;
  fs::directory_iterator it(folder, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;  // a dangling link is not a regular file
    if (wanted(name) && it->is_regular_file(ignored)) names.push_back(prefix + name);
  }
  if (error) {
    return absl::UnavailableError(absl::StrCat("list ", folder.string(), ": ", error.message()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> PatchConfigDtype(absl::string_view config, TensorDtype dtype) {
  ASSIGN_OR_RETURN(const Json parsed, ParseJson(config, "config.json"));
  if (!parsed.is_object()) {
    return absl::InvalidArgumentError("config.json: expected a JSON object");
  }
  const std::string wanted = absl::StrCat("\"", ConfigDtype(dtype), "\"");
  std::string out;
  size_t copied = 0;
  size_t at = SkipSpace(config, 0) + 1;  // past '{'
  while ((at = SkipSpace(config, at)) < config.size() && config[at] == '"') {
    const size_t key_begin = at + 1;
    at = SkipString(config, at);
    const absl::string_view key = config.substr(key_begin, at - 1 - key_begin);
    at = SkipSpace(config, at) + 1;  // past ':'
    const size_t value_begin = SkipSpace(config, at);
    at = SkipValue(config, value_begin);
    // null states no dtype.
    if ((key == "dtype" || key == "torch_dtype") && config[value_begin] == '"') {
      absl::StrAppend(&out, config.substr(copied, value_begin - copied), wanted);
      copied = at;
    }
    at = SkipSpace(config, at);
    if (at < config.size() && config[at] == ',') ++at;
  }
  absl::StrAppend(&out, config.substr(copied));
  return out;
}

absl::StatusOr<std::vector<std::string>> ListSideFiles(const std::string& folder) {
  std::vector<std::string> names;
  RETURN_IF_ERROR(CollectFolder(folder, "", IsSideFile, names));
  const fs::path templates = fs::path(folder) / "additional_chat_templates";
  std::error_code ignored;
  if (fs::is_directory(templates, ignored)) {
    RETURN_IF_ERROR(CollectFolder(
        templates, "additional_chat_templates/",
        [](const std::string& name) { return absl::EndsWith(name, ".jinja"); }, names));
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace switchyard
