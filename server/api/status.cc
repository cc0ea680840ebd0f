#include "server/api/status.h"

#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/error.h"

namespace switchyard {

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const ErrorDetails details = GetErrorDetails(status);
  google::rpc::ErrorInfo info;
  info.set_domain("switchyard");
  info.set_reason(details.reason);
  for (const auto& [key, value] : details.metadata) (*info.mutable_metadata())[key] = value;

  google::rpc::Status out;
  out.set_code(static_cast<int>(status.code()));
  out.set_message(std::string(status.message()));
  out.add_details()->PackFrom(info);
  if (!details.violations.empty()) {
    google::rpc::BadRequest bad;
    for (const FieldViolation& violation : details.violations) {
      auto* field = bad.add_field_violations();
      field->set_field(violation.field);
      field->set_description(violation.description);
    }
    out.add_details()->PackFrom(bad);
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
                      out.SerializeAsString());
}

}  // namespace switchyard
