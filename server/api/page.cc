#include "server/api/page.h"

#include <algorithm>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/crc32c.h"
#include "server/error.h"

namespace switchyard {

std::string MakePageToken(absl::string_view query, int64_t position) {
  return absl::WebSafeBase64Escape(absl::StrCat("1:", Crc32c(query), ":", position));
}

absl::StatusOr<int64_t> ParsePageToken(absl::string_view token, absl::string_view query) {
  if (token.empty()) return 0;
  std::string text;
  uint32_t crc = 0;
  int64_t position = 0;
  if (absl::WebSafeBase64Unescape(token, &text)) {
    const std::vector<std::string> parts = absl::StrSplit(text, ':');
    if (parts.size() == 3 && parts[0] == "1" && absl::SimpleAtoi(parts[1], &crc) &&
        absl::SimpleAtoi(parts[2], &position) && crc == Crc32c(query) && position > 0) {
      return position;
    }
  }
  return MakeError(absl::StatusCode::kInvalidArgument, "PAGE_TOKEN_INVALID",
                   "page_token is not from this list, or the other fields of the request changed "
                   "since the page before");
}

absl::StatusOr<int> PageSize(int32_t requested) {
  if (requested < 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, "PAGE_SIZE_INVALID",
                     absl::StrCat("page_size is ", requested, ", must be 0 or more"),
                     {{"page_size", absl::StrCat(requested)}});
  }
  return requested == 0 ? 50 : std::min(requested, 1000);
}

}  // namespace switchyard
