// Opaque page tokens: a position, tied to the query that it continues.
#ifndef SWITCHYARD_SERVER_API_PAGE_H_
#define SWITCHYARD_SERVER_API_PAGE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// `query`: all that must stay the same from page to page.
std::string MakePageToken(absl::string_view query, int64_t position);

// 0 for an empty token. Errors: InvalidArgument PAGE_TOKEN_INVALID: not ours, or of another query.
absl::StatusOr<int64_t> ParsePageToken(absl::string_view token, absl::string_view query);

// 0: 50; above 1000: 1000. Errors: InvalidArgument PAGE_SIZE_INVALID when negative.
absl::StatusOr<int> PageSize(int32_t requested);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_PAGE_H_
