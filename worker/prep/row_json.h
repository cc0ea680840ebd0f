// Parsing of JSON that users wrote.
#ifndef SWITCHYARD_WORKER_PREP_ROW_JSON_H_
#define SWITCHYARD_WORKER_PREP_ROW_JSON_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/json.h"

namespace switchyard {

// As ParseJson, but refuses nesting beyond 100 levels: copying and printing a value, and the chat
// template's reader, recurse, so that depth would become a crash.
// Errors: InvalidArgument.
absl::StatusOr<Json> ParseRowJson(absl::string_view text, absl::string_view what);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_ROW_JSON_H_
