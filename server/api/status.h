// absl::Status -> grpc::Status, code unchanged, with google.rpc.ErrorInfo (domain "switchyard") in
// the details, and BadRequest when the request has several faults. The only place that makes a
// grpc::Status.
#ifndef SWITCHYARD_SERVER_API_STATUS_H_
#define SWITCHYARD_SERVER_API_STATUS_H_

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace switchyard {

grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_STATUS_H_
