// Calls to the coordinator: deadlines, retries, errors in words.
#ifndef SWITCHYARD_CLIENT_CONNECTION_H_
#define SWITCHYARD_CLIENT_CONNECTION_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/thread.h"
#include "client/terminal.h"
#include "grpcpp/grpcpp.h"
#include "switchyard/v1/admin_service.grpc.pb.h"
#include "switchyard/v1/checkpoint_service.grpc.pb.h"
#include "switchyard/v1/job_service.grpc.pb.h"

namespace switchyard {

struct CallPolicy {
  absl::Duration deadline = absl::Seconds(30);  // of each try
  int tries = 4;                                // on UNAVAILABLE only
  absl::Duration backoff = absl::Milliseconds(200);
  absl::Duration max_backoff = absl::Seconds(2);
};

// Code and message of a call's end, the server's details kept as a payload for DescribeError.
absl::Status FromGrpc(const grpc::Status& status);

// The error for people: message, reason, faults by field, and what to do. `doing` is what was tried
// ("submit the job"). No newline at the end.
std::string DescribeError(const absl::Status& status, absl::string_view doing,
                          absl::string_view server);
// 0, 2 to 7, 130, or 1 for what has no code of its own.
int ExitCode(const absl::Status& status);
// Whether the server said so, rather than this program.
bool FromServer(const absl::Status& status);
// Whether the call may have been carried out all the same.
bool OutcomeUnknown(const absl::Status& status);

class Connection {
 public:
  Connection(const std::string& server, const Terminal& terminal);
  v1::JobService::Stub& stub() { return *stub_; }
  const std::string& server() const { return server_; }

  // One unary call, tried again with backoff while UNAVAILABLE. Only for calls that are safe to
  // repeat: reads, and changes with a request_id. Ctrl-C ends it with Cancelled.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::JobService::Stub::*method)(grpc::ClientContext*,
                                                                             const Request&,
                                                                             Response*),
                                const Request& request, const CallPolicy& policy = {}) {
    return CallOn(*stub_, method, request, policy);
  }
  // The same of AdminService; all its calls may be repeated.
  template <typename Request, typename Response>
  absl::StatusOr<Response> CallAdmin(grpc::Status (v1::AdminService::Stub::*method)(
                                         grpc::ClientContext*, const Request&, Response*),
                                     const Request& request, const CallPolicy& policy = {}) {
    return CallOn(*admin_, method, request, policy);
  }
  // And of CheckpointService.
  template <typename Request, typename Response>
  absl::StatusOr<Response> CallCheckpoints(grpc::Status (v1::CheckpointService::Stub::*method)(
                                               grpc::ClientContext*, const Request&, Response*),
                                           const Request& request, const CallPolicy& policy = {}) {
    return CallOn(*checkpoints_, method, request, policy);
  }
  v1::CheckpointService::Stub& checkpoints() { return *checkpoints_; }

 private:
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> CallOn(Stub& stub,
                                  grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                               Response*),
                                  const Request& request, const CallPolicy& policy) {
    Response response;
    const absl::Status status = Retry(policy, [&](grpc::ClientContext* context) {
      response.Clear();
      return (stub.*method)(context, request, &response);
    });
    if (!status.ok()) return status;
    return response;
  }
  absl::Status Retry(const CallPolicy& policy,
                     const std::function<grpc::Status(grpc::ClientContext*)>& call);

  const std::string server_;
  const Terminal& terminal_;
  std::unique_ptr<v1::JobService::Stub> stub_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
  std::unique_ptr<v1::CheckpointService::Stub> checkpoints_;
};

// Cancels a stream's context when Ctrl-C comes, or when nothing was heard for `silence`: a dead
// peer sends no error. Touch() with each message.
class StreamGuard {
 public:
  StreamGuard(grpc::ClientContext& context, Interrupt& interrupt, absl::Duration silence);
  ~StreamGuard();
  void Touch() { ++messages_; }
  bool fell_silent() const { return silent_; }

 private:
  Interrupt& interrupt_;
  std::atomic<int64_t> messages_{0};
  std::atomic<bool> silent_{false};
  Thread watchdog_;  // last: joined before the members it reads are destroyed
};

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_CONNECTION_H_
