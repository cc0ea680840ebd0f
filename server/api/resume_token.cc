#include "server/api/resume_token.h"

#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/crc32c.h"
#include "server/error.h"

namespace switchyard {
namespace {

absl::Status Invalid(absl::string_view why) {
  return MakeError(absl::StatusCode::kInvalidArgument, "RESUME_TOKEN_INVALID",
                   absl::StrCat("resume_token ", why));
}

}  // namespace

std::string MakeResumeToken(absl::string_view database_uuid, absl::string_view job_uid,
                            const HistoryPosition& position) {
  const std::string text =
      absl::StrCat("1:", database_uuid, ":", job_uid, ":", position.event, ":", position.step_id,
                   ":", position.replay_until_id, ":", position.replay_after_step);
  return absl::WebSafeBase64Escape(absl::StrCat(text, ":", Crc32c(text)));
}

absl::StatusOr<HistoryPosition> ParseResumeToken(absl::string_view token,
                                                 absl::string_view database_uuid,
                                                 absl::string_view job_uid) {
  std::string text;
  HistoryPosition position;
  if (!absl::WebSafeBase64Unescape(token, &text)) return Invalid("is not one of ours");
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  // Only what we would write ourselves, to the last bit, is taken.
  if (parts.size() != 8 || !absl::SimpleAtoi(parts[3], &position.event) ||
      !absl::SimpleAtoi(parts[4], &position.step_id) ||
      !absl::SimpleAtoi(parts[5], &position.replay_until_id) ||
      !absl::SimpleAtoi(parts[6], &position.replay_after_step) ||
      token != MakeResumeToken(parts[1], parts[2], position)) {
    return Invalid("is not one of ours");
  }
  if (parts[1] != database_uuid) {
    return MakeError(absl::StatusCode::kOutOfRange, "RESUME_TOKEN_EXPIRED",
                     "resume_token is of a history that is not there any more (the database was "
                     "restored); watch from the start",
                     {{"earliest_sequence", "1"}});
  }
  if (parts[2] != job_uid) return Invalid("is of another job");
  return position;
}

absl::Status HistoryPruned(int64_t first_event) {
  return MakeError(absl::StatusCode::kOutOfRange, "RESUME_TOKEN_EXPIRED",
                   absl::StrCat("the job ended long ago and its history before event ", first_event,
                                " was removed; watch from the start, or from there"),
                   {{"earliest_sequence", absl::StrCat(first_event)}});
}

}  // namespace switchyard
