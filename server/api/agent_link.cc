// AgentLink: decode, call, encode. Sessions are callbacks driven by the pump (stream_pump.h); the
// rest is synchronous.
#include <algorithm>
#include <atomic>
#include <utility>

#include "base/log.h"
#include "base/status_macros.h"
#include "server/api/agent_gateway.h"
#include "server/api/context.h"
#include "server/api/convert.h"
#include "switchyard/v1/agent_link.grpc.pb.h"

namespace switchyard {
namespace {

constexpr absl::Duration kStallLimit = absl::Seconds(60);
// Orders that could not be read or prepared are tried again after this long.
constexpr absl::Duration kOrderRetry = absl::Seconds(2);
constexpr absl::Duration kIdle = absl::Seconds(30);

// The transport of one AgentSession.
class Session final : public grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>,
                      public PumpedStream {
 public:
  Session(const ServiceContext& context, AgentGateway& gateway, grpc::CallbackServerContext* call)
      : context_(context), call_(call), id_(context.pump.NewId()), session_(gateway) {}

  void Start() {
    if (!context_.ready || !context_.pump.Add(id_, StreamKind::kSession, this, "")) {
      End(MakeError(absl::StatusCode::kUnavailable, "NOT_SERVING",
                    "the coordinator is starting or stopping; try again"));
      return;
    }
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    const absl::Status status = ok ? session_.Heartbeat(request_) : absl::OkStatus();
    if (ok && status.ok()) {
      StartRead(&request_);
    } else {
      absl::MutexLock lock(&mu_);
      reads_done_ = true;
      failure_ = status;
    }
    context_.pump.Wake(id_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) broken_ = true;
    writing_ = false;
    context_.pump.Wake(id_);
  }
  void OnCancel() override {
    broken_ = true;
    context_.pump.Wake(id_);
  }
  void OnDone() override { delete this; }

  absl::optional<absl::Duration> Step(const Wakeup& wakeup) override {
    const absl::Duration now = context_.clock.Monotonic();
    orders_changed_ = orders_changed_ || wakeup.topic_changed;
    if (writing_) {
      if (wakeup.stopping || now - last_write_ > kStallLimit) call_->TryCancel();
      return std::max(last_write_ + kStallLimit, now) + absl::Seconds(1);
    }
    absl::Status end;
    bool ended = broken_ || wakeup.stopping;
    {
      absl::MutexLock lock(&mu_);
      ended = ended || reads_done_;
      end = failure_;
    }
    absl::StatusOr<absl::optional<v1::SessionResponse>> message;
    if (!ended) {
      if (const auto lease = session_.lease(); lease && !std::exchange(topic_set_, true)) {
        context_.pump.SetTopic(id_, TopicOf(lease->node));
      }
      message = session_.Next(std::exchange(orders_changed_, false));
      if (absl::IsAborted(message.status())) {
        end = message.status();
        ended = true;
      } else if (!message.ok()) {
        SY_LOG(ERROR) << "orders failed node=" << session_.lease()->node
                      << " error=" << message.status().message();
        return now + kOrderRetry;
      }
    }
    if (ended) {
      if (end.ok() && wakeup.stopping) {
        end =
            MakeError(absl::StatusCode::kUnavailable, "NOT_SERVING", "the coordinator is stopping");
      }
      End(end);
      return absl::nullopt;
    }
    if (!message->has_value()) return now + kIdle;
    response_ = **std::move(message);
    writing_ = true;
    last_write_ = now;
    StartWrite(&response_);
    return now + kStallLimit + absl::Seconds(1);
  }

 private:
  void End(const absl::Status& status) {
    context_.metrics.RpcDone("Session", absl::StatusCodeToString(status.code()), -1);
    Finish(ToGrpcStatus(status));  // last: OnDone may delete this at once
  }

  const ServiceContext& context_;
  grpc::CallbackServerContext* const call_;
  const uint64_t id_;
  v1::SessionRequest request_;  // between StartRead and OnReadDone: gRPC's

  AgentSession session_;

  // The pump's thread only.
  v1::SessionResponse response_;
  absl::Duration last_write_;
  bool topic_set_ = false;
  bool orders_changed_ = true;

  std::atomic<bool> writing_{false};
  std::atomic<bool> broken_{false};
  absl::Mutex mu_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  bool reads_done_ ABSL_GUARDED_BY(mu_) = false;
};

class AgentLinkImpl final
    : public v1::AgentLink::WithCallbackMethod_Session<v1::AgentLink::Service> {
 public:
  explicit AgentLinkImpl(const ServiceContext& context)
      : context_(context),
        gateway_(context.store, context.leases, context.lease_config, context.publisher,
                 context.logs, context.config.artifact_root) {}

  grpc::Status Register(grpc::ServerContext*, const v1::RegisterRequest* request,
                        v1::RegisterResponse* response) override {
    return context_.Unary("Register", [&]() -> absl::Status {
      ASSIGN_OR_RETURN(*response, gateway_.Register(*request));
      return absl::OkStatus();
    });
  }
  grpc::Status Report(grpc::ServerContext*, const v1::ReportRequest* request,
                      v1::ReportResponse* response) override {
    return context_.Unary("Report", [&]() -> absl::Status {
      ASSIGN_OR_RETURN(*response, gateway_.Report(*request));
      return absl::OkStatus();
    });
  }
  grpc::Status CommitCheckpoint(grpc::ServerContext*, const v1::CommitCheckpointRequest* request,
                                v1::CommitCheckpointResponse* response) override {
    return context_.Unary("CommitCheckpoint", [&] { return DoCommit(*request, *response); });
  }
  grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>* Session(
      grpc::CallbackServerContext* call) override {
    auto* session = new switchyard::Session(context_, gateway_, call);  // deletes itself in OnDone
    session->Start();
    return session;
  }

 private:
  absl::Status DoCommit(const v1::CommitCheckpointRequest& request,
                        v1::CommitCheckpointResponse& response) {
    const absl::Duration start = context_.clock.Monotonic();
    absl::StatusOr<CheckpointRecord> done = gateway_.CommitCheckpoint(request);
    if (!done.ok()) {
      context_.metrics.CheckpointRejected(GetErrorDetails(done.status()).reason);
      return done.status();
    }
    context_.metrics.CheckpointCommitDone(
        absl::ToDoubleSeconds(context_.clock.Monotonic() - start));
    *response.mutable_checkpoint() = ToProto(*done);
    return absl::OkStatus();
  }

  const ServiceContext context_;
  AgentGateway gateway_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAgentLink(const ServiceContext& context) {
  return std::make_unique<AgentLinkImpl>(context);
}

}  // namespace switchyard
