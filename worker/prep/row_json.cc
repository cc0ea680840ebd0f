#include "worker/prep/row_json.h"

#include "absl/strings/str_cat.h"

namespace switchyard {

absl::StatusOr<Json> ParseRowJson(absl::string_view text, absl::string_view what) {
  constexpr int kMaxDepth = 100;
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
      continue;
    }
    if (c == '"') in_string = true;
    if (c == '}' || c == ']') --depth;
    if ((c == '{' || c == '[') && ++depth > kMaxDepth) {
      return absl::InvalidArgumentError(
          absl::StrCat("parse ", what, ": nested deeper than ", kMaxDepth, " levels at byte ", i));
    }
  }
  return ParseJson(text, what);
}

}  // namespace switchyard
