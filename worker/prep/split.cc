#include "worker/prep/split.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

absl::StatusOr<std::optional<SplitBound>> ParseBound(absl::string_view text,
                                                     const std::string& whole) {
  text = absl::StripAsciiWhitespace(text);
  if (text.empty()) return std::nullopt;
  SplitBound bound;
  bound.percent = absl::ConsumeSuffix(&text, "%");
  if (!absl::SimpleAtoi(text, &bound.value) || (bound.percent && std::abs(bound.value) > 100)) {
    return absl::InvalidArgumentError(absl::StrCat("split '", whole, "': '", text,
                                                   bound.percent ? "%" : "",
                                                   "' is neither a row number nor a percentage"));
  }
  return bound;
}

absl::StatusOr<SplitPart> ParsePart(absl::string_view text, const std::string& whole) {
  SplitPart part;
  const size_t open = text.find('[');
  part.name = std::string(absl::StripAsciiWhitespace(text.substr(0, open)));
  if (open == absl::string_view::npos) return part;
  absl::string_view slice = text.substr(open + 1);
  if (!absl::ConsumeSuffix(&slice, "]")) {
    return absl::InvalidArgumentError(absl::StrCat("split '", whole, "': '[' without ']'"));
  }
  const std::vector<absl::string_view> bounds = absl::StrSplit(slice, ':');
  if (bounds.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("split '", whole, "': a slice is [begin:end], got [", slice, "]"));
  }
  ASSIGN_OR_RETURN(part.begin, ParseBound(bounds[0], whole));
  ASSIGN_OR_RETURN(part.end, ParseBound(bounds[1], whole));
  return part;
}

int64_t Place(const SplitBound& bound, int64_t num_rows) {
  int64_t place = bound.value;
  if (bound.percent) {
    place = std::llround(static_cast<double>(bound.value) * static_cast<double>(num_rows) / 100.0);
  }
  if (place < 0) place += num_rows;
  return std::clamp<int64_t>(place, 0, num_rows);
}

}  // namespace

bool SplitPart::IsAbsolute() const {
  const auto absolute = [](const std::optional<SplitBound>& bound) {
    return !bound || (!bound->percent && bound->value >= 0);
  };
  return absolute(begin) && absolute(end);
}

std::pair<int64_t, int64_t> SplitPart::Resolve(int64_t num_rows) const {
  const int64_t first = begin ? Place(*begin, num_rows) : 0;
  const int64_t last = end ? Place(*end, num_rows) : num_rows;
  return {first, std::max(first, last)};
}

absl::StatusOr<std::vector<SplitPart>> ParseSplit(const std::string& text) {
  std::vector<SplitPart> parts;
  for (const absl::string_view piece : absl::StrSplit(text, '+')) {
    ASSIGN_OR_RETURN(SplitPart part, ParsePart(absl::StripAsciiWhitespace(piece), text));
    if (text.find('+') != std::string::npos && part.name.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("split '", text, "': each part of a sum needs a name"));
    }
    parts.push_back(std::move(part));
  }
  return parts;
}

}  // namespace switchyard
