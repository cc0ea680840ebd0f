#include "server/error.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"

namespace switchyard {
namespace {

constexpr char kPayloadUrl[] = "switchyard/error_details";

}  // namespace

absl::Status MakeError(absl::StatusCode code, absl::string_view reason, absl::string_view message,
                       const ErrorMetadata& metadata) {
  absl::Status status(code, message);
  Json payload = {{"reason", std::string(reason)}, {"metadata", Json::object()}};
  for (const auto& [key, value] : metadata) payload["metadata"][key] = value;
  status.SetPayload(kPayloadUrl, absl::Cord(DumpJson(payload)));
  return status;
}

absl::Status WithReason(const absl::Status& status, absl::string_view reason,
                        const ErrorMetadata& metadata) {
  return status.ok() ? status : MakeError(status.code(), reason, status.message(), metadata);
}

absl::Status MakeBadRequest(absl::string_view reason, absl::string_view what,
                            const std::vector<FieldViolation>& violations) {
  std::string message = absl::StrCat(what, ": ");
  const size_t shown = std::min<size_t>(violations.size(), 3);
  for (size_t i = 0; i < shown; ++i) {
    absl::StrAppend(&message, i == 0 ? "" : "; ", violations[i].field, ": ",
                    violations[i].description);
  }
  if (violations.size() > shown) {
    absl::StrAppend(&message, "; and ", violations.size() - shown, " more");
  }
  absl::Status status = absl::InvalidArgumentError(message);
  Json payload = {{"reason", std::string(reason)}, {"violations", Json::array()}};
  for (const FieldViolation& v : violations) {
    payload["violations"].push_back({{"field", v.field}, {"description", v.description}});
  }
  status.SetPayload(kPayloadUrl, absl::Cord(DumpJson(payload)));
  return status;
}

ErrorDetails GetErrorDetails(const absl::Status& status) {
  ErrorDetails details;
  details.reason = absl::StatusCodeToString(status.code());
  const absl::optional<absl::Cord> payload = status.GetPayload(kPayloadUrl);
  if (!payload.has_value()) return details;
  const absl::StatusOr<Json> json = ParseJson(std::string(*payload), "error details");
  if (!json.ok()) return details;
  details.reason = JsonGetOr<std::string>(*json, "reason", details.reason).value_or("UNKNOWN");
  if (const Json* metadata = JsonFind(*json, "metadata")) {
    for (const auto& item : metadata->items()) {
      details.metadata.emplace_back(item.key(),
                                    JsonGet<std::string>(*metadata, item.key()).value_or(""));
    }
  }
  if (const Json* violations = JsonFind(*json, "violations")) {
    for (const Json& v : *violations) {
      details.violations.push_back({JsonGet<std::string>(v, "field").value_or(""),
                                    JsonGet<std::string>(v, "description").value_or("")});
    }
  }
  return details;
}

}  // namespace switchyard
