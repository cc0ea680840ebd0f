#include "tests/agent/fake_coordinator.h"

#include <google/protobuf/util/message_differencer.h>
#include <grpcpp/grpcpp.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "switchyard/v1/agent_link.grpc.pb.h"

namespace switchyard {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

void ToProto(absl::Duration duration, google::protobuf::Duration& out) {
  const int64_t nanoseconds = absl::ToInt64Nanoseconds(duration);
  out.set_seconds(nanoseconds / 1'000'000'000);
  out.set_nanos(static_cast<int32_t>(nanoseconds % 1'000'000'000));
}

grpc::Status Unavailable() { return {grpc::StatusCode::UNAVAILABLE, "told to be unavailable"}; }

grpc::Status AlreadyExists(const std::string& reason) {
  google::rpc::ErrorInfo info;
  info.set_domain("switchyard");
  info.set_reason(reason);
  google::rpc::Status details;
  details.set_code(grpc::StatusCode::ALREADY_EXISTS);
  details.add_details()->PackFrom(info);
  return {grpc::StatusCode::ALREADY_EXISTS, "the name is held with state folder '/elsewhere'",
          details.SerializeAsString()};
}

}  // namespace

class FakeCoordinator::Service final : public v1::AgentLink::Service {
 public:
  using Stream = grpc::ServerReaderWriter<v1::SessionResponse, v1::SessionRequest>;

  grpc::Status Register(grpc::ServerContext*, const v1::RegisterRequest* request,
                        v1::RegisterResponse* response) override {
    absl::MutexLock lock(&mu_);
    record_.registrations.push_back(*request);
    if (behaviour_.refuse_registrations) return Unavailable();
    if (!behaviour_.refusal_reason.empty()) return AlreadyExists(behaviour_.refusal_reason);
    response->set_coordinator_epoch(behaviour_.epoch);
    ToProto(behaviour_.heartbeat_interval, *response->mutable_heartbeat_interval());
    ToProto(behaviour_.lease_ttl, *response->mutable_lease_ttl());
    response->set_acknowledged_report(Acknowledged());
    for (const auto& ref : behaviour_.stale_at_register) *response->add_stale_attempts() = ref;
    return grpc::Status::OK;
  }

  grpc::Status Session(grpc::ServerContext*, Stream* stream) override {
    {
      absl::MutexLock lock(&mu_);
      ++record_.num_sessions;
    }
    {
      absl::MutexLock lock(&stream_mu_);
      stream_ = stream;
    }
    v1::SessionRequest request;
    while (stream->Read(&request)) {
      v1::SessionResponse ack;
      bool acknowledge;
      {
        absl::MutexLock lock(&mu_);
        ++record_.num_heartbeats;
        record_.last_heartbeat = request;
        acknowledge = behaviour_.acknowledge_heartbeats;
        ack.set_coordinator_epoch(behaviour_.epoch);
      }
      ack.mutable_heartbeat_ack()->set_heartbeat(request.heartbeat());
      absl::MutexLock lock(&stream_mu_);
      if (acknowledge) stream->Write(ack);
    }
    absl::MutexLock lock(&stream_mu_);
    if (stream_ == stream) stream_ = nullptr;
    return grpc::Status::OK;
  }

  grpc::Status Report(grpc::ServerContext*, const v1::ReportRequest* request,
                      v1::ReportResponse* response) override {
    absl::MutexLock lock(&mu_);
    if (behaviour_.refuse_reports) return Unavailable();
    for (const v1::Report& report : request->reports()) {
      const auto known = record_.reports.find(report.number());
      if (known == record_.reports.end()) {
        if (report.number() != Acknowledged() + 1) {
          record_.faults.push_back(absl::StrCat("gap before report ", report.number()));
        }
        record_.reports[report.number()] = report;
      } else if (google::protobuf::util::MessageDifferencer::Equals(known->second, report)) {
        ++record_.num_resent;
      } else {
        record_.faults.push_back(absl::StrCat("report ", report.number(), " came with a change"));
      }
    }
    if (behaviour_.lose_report_answers) return Unavailable();
    response->set_acknowledged(Acknowledged());
    for (const auto& ref : behaviour_.stale_at_report) *response->add_stale_attempts() = ref;
    return grpc::Status::OK;
  }

  grpc::Status CommitCheckpoint(grpc::ServerContext*, const v1::CommitCheckpointRequest* request,
                                v1::CommitCheckpointResponse* response) override {
    absl::MutexLock lock(&mu_);
    record_.commits.push_back(*request);
    if (behaviour_.refuse_commits > 0) {
      --behaviour_.refuse_commits;
      return Unavailable();
    }
    if (behaviour_.reject_commits) {
      return {grpc::StatusCode::FAILED_PRECONDITION, "size of model.safetensors differs"};
    }
    response->mutable_checkpoint()->set_step(request->step());
    response->mutable_checkpoint()->set_path(absl::StrCat("/final/step-", request->step()));
    return grpc::Status::OK;
  }

  void Start() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port_), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    SY_CHECK(server_ != nullptr) << "port " << port_;
  }
  void Stop() {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
  }
  bool Send(const v1::SessionResponse& order) {
    absl::MutexLock lock(&stream_mu_);
    const auto has_stream = [this] { return stream_ != nullptr; };
    return stream_mu_.AwaitWithTimeout(absl::Condition(&has_stream), kPatience) &&
           stream_->Write(order);
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  absl::Mutex stream_mu_;  // also: one Write at a time
  Stream* stream_ = nullptr;
  mutable absl::Mutex mu_;
  CoordinatorBehaviour behaviour_;
  CoordinatorRecord record_;

 private:
  int64_t Acknowledged() const {
    return record_.reports.empty() ? 0 : record_.reports.rbegin()->first;
  }
};

FakeCoordinator::FakeCoordinator() : service_(std::make_unique<Service>()) { Start(); }
FakeCoordinator::~FakeCoordinator() { Stop(); }
void FakeCoordinator::Start() { service_->Start(); }
void FakeCoordinator::Stop() { service_->Stop(); }

std::string FakeCoordinator::target() const { return absl::StrCat("127.0.0.1:", service_->port_); }

void FakeCoordinator::Configure(const std::function<void(CoordinatorBehaviour&)>& change) {
  absl::MutexLock lock(&service_->mu_);
  change(service_->behaviour_);
}

bool FakeCoordinator::Send(const v1::SessionResponse& order) {
  v1::SessionResponse message = order;
  {
    absl::MutexLock lock(&service_->mu_);
    message.set_coordinator_epoch(service_->behaviour_.epoch);
  }
  return service_->Send(message);
}

bool FakeCoordinator::WaitFor(const std::function<bool(const CoordinatorRecord&)>& condition) {
  absl::MutexLock lock(&service_->mu_);
  const auto holds = [&] { return condition(service_->record_); };
  return service_->mu_.AwaitWithTimeout(absl::Condition(&holds), kPatience);
}

CoordinatorRecord FakeCoordinator::record() const {
  absl::MutexLock lock(&service_->mu_);
  return service_->record_;
}

}  // namespace switchyard
