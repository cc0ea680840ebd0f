// Opaque positions in a job's history, for watches that go on after a cut.
#ifndef SWITCHYARD_SERVER_API_RESUME_TOKEN_H_
#define SWITCHYARD_SERVER_API_RESUME_TOKEN_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/store/store.h"

namespace switchyard {

// `database_uuid`: another one after a restore, when sequence numbers may mean other events.
std::string MakeResumeToken(absl::string_view database_uuid, absl::string_view job_uid,
                            const HistoryPosition& position);

// Errors: InvalidArgument RESUME_TOKEN_INVALID: not ours, or of another job; OutOfRange
// RESUME_TOKEN_EXPIRED: of another history, with the earliest sequence in its metadata.
absl::StatusOr<HistoryPosition> ParseResumeToken(absl::string_view token,
                                                 absl::string_view database_uuid,
                                                 absl::string_view job_uid);

// For a position, of a token or a request, before the first event that is kept: OutOfRange
// RESUME_TOKEN_EXPIRED with that one's number in its metadata.
absl::Status HistoryPruned(int64_t first_event);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_RESUME_TOKEN_H_
