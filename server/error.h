// Errors that clients can act on: a status, a reason in UPPER_SNAKE, and the values in the message.
// The API edge turns the reason into google.rpc.ErrorInfo.
#ifndef SWITCHYARD_SERVER_ERROR_H_
#define SWITCHYARD_SERVER_ERROR_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace switchyard {

using ErrorMetadata = std::vector<std::pair<std::string, std::string>>;

absl::Status MakeError(absl::StatusCode code, absl::string_view reason, absl::string_view message,
                       const ErrorMetadata& metadata = {});

// `status` with a reason, for those made where reasons are not known. OK stays OK.
absl::Status WithReason(const absl::Status& status, absl::string_view reason,
                        const ErrorMetadata& metadata = {});

// One fault in a request, as google.rpc.BadRequest names it.
struct FieldViolation {
  std::string field;  // "spec.parallel.ep_size"
  std::string description;
  friend bool operator==(const FieldViolation&, const FieldViolation&) = default;
};
// InvalidArgument that lists all faults; the message shows the first three. `violations` is not
// empty.
absl::Status MakeBadRequest(absl::string_view reason, absl::string_view what,
                            const std::vector<FieldViolation>& violations);

struct ErrorDetails {
  std::string reason;  // never empty: without one, the name of the code
  ErrorMetadata metadata;
  std::vector<FieldViolation> violations;
};
ErrorDetails GetErrorDetails(const absl::Status& status);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_ERROR_H_
