// The coordinator over real gRPC channels, with an agent written here: what its tests share.
#ifndef SWITCHYARD_SERVER_API_COORDINATOR_TESTING_H_
#define SWITCHYARD_SERVER_API_COORDINATOR_TESTING_H_

#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/status_matchers.h"
#include "base/thread.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"
#include "server/api/convert.h"
#include "server/api/coordinator.h"
#include "switchyard/v1/admin_service.grpc.pb.h"
#include "switchyard/v1/agent_link.grpc.pb.h"
#include "switchyard/v1/checkpoint_service.grpc.pb.h"
#include "switchyard/v1/job_service.grpc.pb.h"

namespace switchyard {

inline constexpr absl::Duration kDeadline = absl::Seconds(10);

inline std::unique_ptr<grpc::ClientContext> MakeCall() {
  auto call = std::make_unique<grpc::ClientContext>();
  call->set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kDeadline));
  return call;
}

inline std::string ReasonOf(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  if (!details.ParseFromString(status.error_details())) return "no details";
  for (const auto& detail : details.details()) {
    if (detail.UnpackTo(&info)) return info.domain() == "switchyard" ? info.reason() : "domain";
  }
  return "no ErrorInfo";
}

inline v1::JobSpec MakeSpec(int ranks = 2) {
  v1::JobSpec spec;
  spec.mutable_model()->set_path("/no/such/model");
  spec.mutable_model()->set_dtype("float32");
  spec.mutable_data()->mutable_train()->add_paths("/data/train.jsonl");
  spec.mutable_data()->set_seq_length(64);
  spec.mutable_batch()->set_global_batch_size(8);
  spec.mutable_batch()->set_local_batch_size(1);
  spec.mutable_batch()->set_max_steps(10);
  spec.mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_ADAMW);
  spec.mutable_optimizer()->set_lr(1e-3);
  spec.mutable_optimizer()->set_beta1(0.9);
  spec.mutable_optimizer()->set_beta2(0.95);
  spec.mutable_optimizer()->set_eps(1e-8);
  spec.mutable_optimizer()->set_moment_dtype("float32");
  spec.mutable_lr_schedule()->set_decay(v1::LR_DECAY_COSINE);
  spec.mutable_parallel()->set_num_ranks(ranks);
  spec.mutable_parallel()->set_ep_size(ranks);
  spec.mutable_parallel()->set_cpu_only(true);
  spec.mutable_checkpoint()->set_save_optimizer(true);
  return spec;
}

// One agent: keeps what it was told, reports what the test says.
class FakeAgent {
 public:
  FakeAgent(const std::string& address, const std::string& node, int devices,
            const std::string& incarnation = "one")
      : node_(node), devices_(devices), incarnation_(incarnation) {
    Connect(address);
  }
  ~FakeAgent() { Disconnect(); }

  void Connect(const std::string& address, std::vector<v1::AttemptRef> live = {}) {
    channel_ = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
    stub_ = v1::AgentLink::NewStub(channel_);
    v1::RegisterRequest request;
    request.set_node(node_);
    request.set_incarnation(incarnation_);
    request.set_boot_id("boot");
    request.set_state_folder("/state/" + node_);
    request.set_address("127.0.0.1");
    for (const v1::AttemptRef& ref : live) *request.add_live_attempts() = ref;
    for (int i = 0; i < devices_; ++i) {
      v1::Device* device = request.add_devices();
      device->set_index(i);
      device->set_kind("cpu");
      device->set_memory_bytes(1 << 30);
    }
    auto call = MakeCall();
    call->set_wait_for_ready(true);
    const grpc::Status status = stub_->Register(call.get(), request, &registered_);
    ASSERT_TRUE(status.ok()) << status.error_message();
    number_ = registered_.acknowledged_report();
    session_call_ = std::make_unique<grpc::ClientContext>();
    session_ = stub_->Session(session_call_.get());
    Heartbeat(live);
    reader_ = Thread("fake-agent", [this](const StopToken&) {
      v1::SessionResponse response;
      while (session_->Read(&response)) {
        absl::MutexLock lock(&mu_);
        received_.push_back(response);
      }
    });
  }
  void Disconnect() {
    if (session_call_ != nullptr) session_call_->TryCancel();
    reader_.StopAndJoin();
    session_.reset();
  }
  void Heartbeat(std::vector<v1::AttemptRef> live = {}) {
    v1::SessionRequest request;
    request.set_node(node_);
    request.set_incarnation(incarnation_);
    request.set_heartbeat(++heartbeat_);
    for (const v1::AttemptRef& ref : live) *request.add_live_attempts() = ref;
    session_->Write(request);
  }
  // Waits for the first order (or ack) of this stream that `matches`, and takes it out.
  template <typename Matches>
  v1::SessionResponse Await(Matches matches) {
    absl::MutexLock lock(&mu_);
    // Without side effects: absl may ask more than once.
    const auto there = [&] { return std::any_of(received_.begin(), received_.end(), matches); };
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&there), kDeadline)) << "no such order came";
    const auto it = std::find_if(received_.begin(), received_.end(), matches);
    if (it == received_.end()) return {};
    const v1::SessionResponse found = *it;
    received_.erase(it);
    return found;
  }
  v1::Assign AwaitAssign() {
    return Await([](const auto& r) { return r.has_assign(); }).assign();
  }
  v1::Start AwaitStart() {
    return Await([](const auto& r) { return r.has_start(); }).start();
  }
  v1::Stop AwaitStop() {
    return Await([](const auto& r) { return r.has_stop(); }).stop();
  }

  v1::Report& Say(const std::string& job, int attempt) {
    v1::Report* report = pending_.add_reports();
    report->set_number(++number_);
    report->set_job(job);
    report->set_attempt(attempt);
    return *report;
  }
  v1::ReportResponse Send() {
    pending_.set_node(node_);
    pending_.set_incarnation(incarnation_);
    v1::ReportResponse response;
    const grpc::Status status = stub_->Report(MakeCall().get(), pending_, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    pending_.Clear();
    return response;
  }
  void Prepare(const std::string& job, int attempt = 1, int port = 4000) {
    Say(job, attempt).mutable_prepared()->set_port(port);
    Send();
  }
  void Run(const std::string& job, int attempt = 1) {
    Say(job, attempt).mutable_running();
    Send();
  }
  void Finish(const std::string& job, int attempt, bool succeeded, bool stopped = false) {
    v1::Finished* finished = Say(job, attempt).mutable_finished();
    finished->set_succeeded(succeeded);
    finished->set_stopped(stopped);
    Send();
  }
  void Step(const std::string& job, int attempt, int step) {
    v1::StepMetrics* metrics = Say(job, attempt).mutable_step();
    metrics->set_step(step);
    metrics->set_total_steps(10);
    metrics->set_loss(5.0 - step * 0.1);
    metrics->set_attempt(attempt);
    metrics->set_memory_bytes(1000);
    Send();
  }
  void Log(const std::string& job, int attempt, int rank, int64_t offset, const std::string& data) {
    v1::LogChunk* log = Say(job, attempt).mutable_log();
    log->set_rank(rank);
    log->set_stream("stdout");
    log->set_offset(offset);
    log->set_data(data);
    Send();
  }
  grpc::Status Commit(const v1::Assign& assign, int64_t step, bool final,
                      v1::Checkpoint* out = nullptr, const std::string& weights = "weights") {
    const std::string folder =
        absl::StrCat(assign.job_dir(), "/staging/", assign.attempt(), "/step-", step);
    EXPECT_THAT(MakeFolders(folder + "/switchyard"), IsOk());
    EXPECT_THAT(ReplaceFile(folder + "/model.safetensors", weights), IsOk());
    const std::string manifest =
        absl::StrCat(R"({"version": 1, "job": ")", assign.job(), R"(", "step": )", step,
                     R"(, "files": [{"name": "model.safetensors", "size": )", weights.size(),
                     R"(, "crc32c": ")", absl::Hex(Crc32c(weights), absl::kZeroPad8), R"("}]})");
    EXPECT_THAT(ReplaceFile(folder + "/switchyard/manifest.json", manifest), IsOk());
    v1::CommitCheckpointRequest request;
    request.set_node(node_);
    request.set_incarnation(incarnation_);
    request.set_job(assign.job());
    request.set_attempt(assign.attempt());
    request.set_step(step);
    request.set_staging_path(folder);
    request.set_manifest_crc32c(Crc32c(manifest));
    request.set_final(final);
    v1::CommitCheckpointResponse response;
    const grpc::Status status = stub_->CommitCheckpoint(MakeCall().get(), request, &response);
    if (out != nullptr) *out = response.checkpoint();
    return status;
  }
  const v1::RegisterResponse& registered() const { return registered_; }
  v1::AgentLink::Stub& stub() { return *stub_; }

 private:
  const std::string node_;
  const int devices_;
  const std::string incarnation_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::AgentLink::Stub> stub_;
  v1::RegisterResponse registered_;
  v1::ReportRequest pending_;
  int64_t number_ = 0;
  int64_t heartbeat_ = 0;
  std::unique_ptr<grpc::ClientContext> session_call_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> session_;
  absl::Mutex mu_;
  std::vector<v1::SessionResponse> received_ ABSL_GUARDED_BY(mu_);
  Thread reader_;
};

class CoordinatorTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "coordinator_test.XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    config_.listen = config_.agent_listen = config_.metrics_listen = "127.0.0.1:0";
    config_.state_dir = folder_ + "/state";
    config_.artifact_root = folder_ + "/artifacts";
    config_.retry_backoff = absl::ZeroDuration();
    config_.watch_heartbeat = absl::Milliseconds(200);
    StartServer();
  }
  void TearDown() override {
    server_.reset();
    std::filesystem::remove_all(folder_);
  }
  void StartServer() {
    auto server = Coordinator::Start(config_, RealClock::Get());
    ASSERT_THAT(server, IsOk());
    server_ = *std::move(server);
    jobs_ = v1::JobService::NewStub(
        grpc::CreateChannel(server_->listen(), grpc::InsecureChannelCredentials()));
    checkpoints_ = v1::CheckpointService::NewStub(
        grpc::CreateChannel(server_->listen(), grpc::InsecureChannelCredentials()));
  }
  // As a crash and a new start would do; on other ports.
  void Restart() {
    server_.reset();
    StartServer();
  }
  std::string Submit(const std::string& id, const v1::JobSpec& spec = MakeSpec()) {
    v1::CreateJobRequest request;
    request.set_parent("projects/p");
    request.set_job_id(id);
    *request.mutable_job()->mutable_spec() = spec;
    v1::CreateJobResponse response;
    const grpc::Status status = jobs_->CreateJob(MakeCall().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.job().name();
  }
  v1::GetJobResponse Get(const std::string& name) {
    v1::GetJobRequest request;
    request.set_name(name);
    v1::GetJobResponse response;
    const grpc::Status status = jobs_->GetJob(MakeCall().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::Job::State State(const std::string& name) { return Get(name).job().state(); }
  grpc::Status Cancel(const std::string& name) {
    v1::CancelJobRequest request;
    request.set_name(name);
    v1::CancelJobResponse response;
    return jobs_->CancelJob(MakeCall().get(), request, &response);
  }
  // Watches until `until` says so of an item, or the stream ends.
  template <typename Until>
  grpc::Status Watch(const v1::WatchJobRequest& request, Until until) {
    auto call = MakeCall();
    auto stream = jobs_->WatchJob(call.get(), request);
    v1::WatchJobResponse response;
    while (stream->Read(&response)) {
      if (!until(response)) continue;
      call->TryCancel();
      while (stream->Read(&response)) {
      }
      stream->Finish();
      return grpc::Status::OK;
    }
    return stream->Finish();
  }
  void AwaitState(const std::string& name, v1::Job::State state) {
    v1::WatchJobRequest request;
    request.set_name(name);
    bool seen = false;
    Watch(request, [&](const v1::WatchJobResponse& r) {
      seen = seen || (r.has_event() && r.event().state() == state);
      return seen;
    });
    EXPECT_TRUE(seen) << "the job did not reach " << v1::Job::State_Name(state);
  }

  std::string folder_;
  ServerConfig config_;
  std::unique_ptr<Coordinator> server_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::unique_ptr<v1::CheckpointService::Stub> checkpoints_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_COORDINATOR_TESTING_H_
