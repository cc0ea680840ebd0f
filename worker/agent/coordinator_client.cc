#include "worker/agent/coordinator_client.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "absl/strings/cord.h"
#include "base/clock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "switchyard/v1/agent_link.grpc.pb.h"

namespace switchyard {
namespace {

constexpr char kReasonPayload[] = "switchyard.v1/reason";
// How often a waiting call looks whether it was told to stop.
constexpr std::chrono::milliseconds kStopInterval(100);

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& any : details.details()) {
      google::rpc::ErrorInfo info;
      if (any.UnpackTo(&info)) result.SetPayload(kReasonPayload, absl::Cord(info.reason()));
    }
  }
  return result;
}

// One unary call. `begin` starts it on a context and a queue.
template <typename Response, typename Begin>
absl::StatusOr<Response> Call(absl::Duration timeout, const StopToken& stop, Begin begin) {
  grpc::ClientContext context;
  // Monotonic: a clock that jumps must not end a call.
  context.set_deadline(
      gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                   gpr_time_from_millis(absl::ToInt64Milliseconds(timeout), GPR_TIMESPAN)));
  grpc::CompletionQueue queue;
  Response response;
  grpc::Status status;
  const auto reader = begin(&context, &queue);
  reader->Finish(&response, &status, /*tag=*/nullptr);
  void* tag = nullptr;
  bool ok = false;
  while (queue.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + kStopInterval) ==
         grpc::CompletionQueue::TIMEOUT) {
    if (stop.StopRequested()) context.TryCancel();
  }
  if (!status.ok()) return FromGrpc(status);
  return response;
}

}  // namespace

std::string ErrorReason(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kReasonPayload);
  return payload.has_value() ? std::string(*payload) : "";
}

struct CoordinatorSession::Impl {
  explicit Impl(v1::AgentLink::Stub& stub) : stream(stub.Session(&context)) {}
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> stream;
};

CoordinatorSession::CoordinatorSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CoordinatorSession::~CoordinatorSession() = default;
bool CoordinatorSession::Write(const v1::SessionRequest& request) {
  return impl_->stream->Write(request);
}
bool CoordinatorSession::Read(v1::SessionResponse* response) {
  return impl_->stream->Read(response);
}
void CoordinatorSession::Cancel() { impl_->context.TryCancel(); }
absl::Status CoordinatorSession::Finish() { return FromGrpc(impl_->stream->Finish()); }

struct CoordinatorClient::Impl {
  explicit Impl(const std::string& target) {
    grpc::ChannelArguments arguments;
    // The agent has its own backoff; a long one inside gRPC would only add to it.
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    // gRPC also takes this as the time one attempt to connect may need: seconds, or a busy machine
    // and a far network never connect.
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10000);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
    channel = grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
    stub = v1::AgentLink::NewStub(channel);
  }
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::AgentLink::Stub> stub;
};

CoordinatorClient::CoordinatorClient(const std::string& target)
    : impl_(std::make_unique<Impl>(target)) {}
CoordinatorClient::~CoordinatorClient() = default;

absl::StatusOr<v1::RegisterResponse> CoordinatorClient::Register(const v1::RegisterRequest& request,
                                                                 absl::Duration timeout,
                                                                 const StopToken& stop) {
  return Call<v1::RegisterResponse>(timeout, stop, [&](auto* context, auto* queue) {
    return impl_->stub->AsyncRegister(context, request, queue);
  });
}

absl::StatusOr<v1::ReportResponse> CoordinatorClient::Report(const v1::ReportRequest& request,
                                                             absl::Duration timeout,
                                                             const StopToken& stop) {
  return Call<v1::ReportResponse>(timeout, stop, [&](auto* context, auto* queue) {
    return impl_->stub->AsyncReport(context, request, queue);
  });
}

absl::StatusOr<v1::CommitCheckpointResponse> CoordinatorClient::CommitCheckpoint(
    const v1::CommitCheckpointRequest& request, absl::Duration timeout, const StopToken& stop) {
  return Call<v1::CommitCheckpointResponse>(timeout, stop, [&](auto* context, auto* queue) {
    return impl_->stub->AsyncCommitCheckpoint(context, request, queue);
  });
}

void CoordinatorClient::WaitBeforeRetry(absl::Duration delay, const StopToken& stop) {
  Clock& clock = RealClock::Get();
  const absl::Duration end = clock.Monotonic() + delay;
  grpc_connectivity_state state = impl_->channel->GetState(/*try_to_connect=*/true);
  if (state == GRPC_CHANNEL_READY) {
    stop.WaitForStop(delay);  // it was reached, and refused the call
    return;
  }
  while (!stop.StopRequested() && state != GRPC_CHANNEL_READY && clock.Monotonic() < end) {
    impl_->channel->WaitForStateChange(state, std::chrono::system_clock::now() + kStopInterval);
    state = impl_->channel->GetState(/*try_to_connect=*/true);
  }
}

std::shared_ptr<CoordinatorSession> CoordinatorClient::OpenSession() {
  return std::shared_ptr<CoordinatorSession>(
      new CoordinatorSession(std::make_unique<CoordinatorSession::Impl>(*impl_->stub)));
}

}  // namespace switchyard
