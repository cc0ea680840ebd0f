// The coordinator over real gRPC channels, with an agent written here.
#include "server/api/coordinator.h"

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
#include "switchyard/v1/admin_service.grpc.pb.h"
#include "switchyard/v1/agent_link.grpc.pb.h"
#include "switchyard/v1/job_service.grpc.pb.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

constexpr absl::Duration kDeadline = absl::Seconds(10);

std::unique_ptr<grpc::ClientContext> MakeCall() {
  auto call = std::make_unique<grpc::ClientContext>();
  call->set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kDeadline));
  return call;
}

std::string ReasonOf(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  if (!details.ParseFromString(status.error_details())) return "no details";
  for (const auto& detail : details.details()) {
    if (detail.UnpackTo(&info)) return info.domain() == "switchyard" ? info.reason() : "domain";
  }
  return "no ErrorInfo";
}

v1::JobSpec MakeSpec(int ranks = 2) {
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
                      v1::Checkpoint* out = nullptr) {
    const std::string folder =
        absl::StrCat(assign.job_dir(), "/staging/", assign.attempt(), "/step-", step);
    EXPECT_THAT(MakeFolders(folder + "/switchyard"), IsOk());
    EXPECT_THAT(ReplaceFile(folder + "/model.safetensors", "weights"), IsOk());
    const std::string manifest = absl::StrCat(
        R"({"version": 1, "job": ")", assign.job(), R"(", "step": )", step,
        R"(, "files": [{"name": "model.safetensors", "size": 7, "crc32c": "00000000"}]})");
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
};

TEST_F(CoordinatorTest, AGangOverTwoNodesGoesFromSubmissionToSuccess) {
  FakeAgent a(server_->agent_listen(), "a", 2);
  FakeAgent b(server_->agent_listen(), "b", 2);
  const std::string job = Submit("j", MakeSpec(4));
  const v1::Assign first = a.AwaitAssign();
  const v1::Assign second = b.AwaitAssign();
  EXPECT_EQ(first.world_size(), 4);
  EXPECT_EQ(first.num_nodes(), 2);
  EXPECT_EQ(first.first_rank() + second.first_rank(), 2);
  EXPECT_EQ(first.spec().SerializeAsString(), MakeSpec(4).SerializeAsString());
  EXPECT_THAT(ReadFile(first.job_dir() + "/job.json"), IsOk());
  a.Prepare(job, 1, 4001);
  b.Prepare(job, 1, 4002);
  const int port = first.node_rank() == 0 ? 4001 : 4002;
  EXPECT_EQ(a.AwaitStart().master_port(), port);
  EXPECT_EQ(b.AwaitStart().master_port(), port);
  a.Run(job);
  EXPECT_EQ(State(job), v1::Job::STARTING);
  b.Run(job);
  EXPECT_EQ(State(job), v1::Job::RUNNING);
  a.Step(job, 1, 3);
  EXPECT_EQ(Get(job).job().progress().step(), 3);
  v1::Checkpoint checkpoint;
  ASSERT_TRUE(a.Commit(first, 10, /*final=*/true, &checkpoint).ok());
  EXPECT_THAT(ReadFile(checkpoint.path() + "/model.safetensors"), IsOk());
  EXPECT_FALSE(std::filesystem::exists(first.job_dir() + "/staging/1/step-10"));
  ASSERT_TRUE(a.Commit(first, 10, /*final=*/true).ok()) << "a repeated commit is answered again";
  a.Finish(job, 1, true);
  b.Finish(job, 1, true);
  EXPECT_EQ(State(job), v1::Job::SUCCEEDED);

  v1::ListCheckpointsRequest request;
  request.set_parent(job);
  v1::ListCheckpointsResponse response;
  ASSERT_TRUE(jobs_->ListCheckpoints(MakeCall().get(), request, &response).ok());
  ASSERT_EQ(response.checkpoints_size(), 1);
  EXPECT_TRUE(response.checkpoints(0).final());
  const grpc::Status late = Cancel(job);
  EXPECT_EQ(late.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(late), "JOB_FINAL");
}

TEST_F(CoordinatorTest, AFailureNamesTheRankAndARetryResumes) {
  FakeAgent agent(server_->agent_listen(), "a", 2);
  v1::JobSpec spec = MakeSpec();
  spec.mutable_retry()->set_max_retries(1);
  const std::string job = Submit("j", spec);
  const v1::Assign first = agent.AwaitAssign();
  agent.Prepare(job);
  agent.AwaitStart();
  agent.Run(job);
  v1::Checkpoint checkpoint;
  ASSERT_TRUE(agent.Commit(first, 5, false, &checkpoint).ok());
  for (int attempt : {1, 2}) {
    v1::Failure* failure = agent.Say(job, attempt).mutable_rank_failed()->mutable_failure();
    failure->set_reason(v1::TRAINER_SIGNAL);
    failure->set_rank(1);
    failure->set_signal(9);
    failure->add_last_lines("killed");
    agent.Send();
    agent.AwaitStop();
    agent.Finish(job, attempt, false);
    if (attempt == 2) break;
    const v1::Assign again = agent.AwaitAssign();
    EXPECT_EQ(again.attempt(), 2);
    EXPECT_EQ(again.resume_from(), checkpoint.path());
    const grpc::Status stale = agent.Commit(first, 6, false);
    EXPECT_EQ(stale.error_code(), grpc::StatusCode::ABORTED);
    EXPECT_EQ(ReasonOf(stale), "STALE_ATTEMPT");
    agent.Prepare(job, 2);
    agent.AwaitStart();
    agent.Run(job, 2);
  }
  const v1::GetJobResponse end = Get(job);
  EXPECT_EQ(end.job().state(), v1::Job::FAILED);
  EXPECT_EQ(end.job().failure().rank(), 1);
  EXPECT_EQ(end.job().failure().reason(), v1::TRAINER_SIGNAL);
  EXPECT_THAT(end.job().failure().last_lines(), ElementsAre("killed"));
  ASSERT_EQ(end.attempts_size(), 2);
  EXPECT_EQ(end.attempts(0).state(), v1::Attempt::FAILED);
}

TEST_F(CoordinatorTest, ATornCheckpointIsRefusedWithBothNumbers) {
  FakeAgent agent(server_->agent_listen(), "a", 2);
  const std::string job = Submit("j");
  v1::Assign assign = agent.AwaitAssign();
  const std::string folder = assign.job_dir() + "/staging/1/step-7";
  ASSERT_THAT(MakeFolders(folder + "/switchyard"), IsOk());
  const std::string manifest =
      absl::StrCat(R"({"version": 1, "job": ")", job,
                   R"(", "step": 7, "files": [{"name": "model.safetensors", "size": 700}]})");
  ASSERT_THAT(ReplaceFile(folder + "/model.safetensors", "weights"), IsOk());
  ASSERT_THAT(ReplaceFile(folder + "/switchyard/manifest.json", manifest), IsOk());
  v1::CommitCheckpointRequest request;
  request.set_node("a");
  request.set_incarnation("one");
  request.set_job(job);
  request.set_attempt(1);
  request.set_step(7);
  request.set_staging_path(folder);
  request.set_manifest_crc32c(Crc32c(manifest));
  v1::CommitCheckpointResponse response;
  const grpc::Status status = agent.stub().CommitCheckpoint(MakeCall().get(), request, &response);
  EXPECT_EQ(ReasonOf(status), "CHECKPOINT_REJECTED");
  EXPECT_THAT(status.error_message(), AllOf(HasSubstr("has 7 bytes"), HasSubstr("says 700")));
  EXPECT_TRUE(std::filesystem::exists(folder)) << "nothing was moved";
}

TEST_F(CoordinatorTest, CancelsWhereverTheJobIs) {
  const std::string queued = Submit("queued");
  EXPECT_TRUE(Cancel(queued).ok());
  EXPECT_EQ(State(queued), v1::Job::CANCELLED);
  EXPECT_TRUE(Cancel(queued).ok()) << "again";

  FakeAgent agent(server_->agent_listen(), "a", 2);
  for (const bool running : {false, true}) {
    const std::string job = Submit(running ? "running" : "starting");
    agent.AwaitAssign();
    if (running) {
      agent.Prepare(job);
      agent.AwaitStart();
      agent.Run(job);
    }
    EXPECT_TRUE(Cancel(job).ok());
    EXPECT_EQ(State(job), v1::Job::STOPPING);
    EXPECT_EQ(agent.AwaitStop().job(), job);
    agent.Finish(job, 1, false, /*stopped=*/true);
    EXPECT_EQ(State(job), v1::Job::CANCELLED);
  }
}

TEST_F(CoordinatorTest, ARestartInTheMiddleLosesNothing) {
  auto agent = std::make_unique<FakeAgent>(server_->agent_listen(), "a", 2);
  const std::string running = Submit("running");
  const std::string waiting = Submit("waiting");
  const v1::Assign assign = agent->AwaitAssign();
  agent->Prepare(running);
  agent->AwaitStart();
  agent->Run(running);
  agent->Step(running, 1, 1);
  const int64_t epoch = agent->registered().coordinator_epoch();

  agent->Disconnect();
  Restart();
  EXPECT_EQ(State(running), v1::Job::RUNNING);
  EXPECT_EQ(State(waiting), v1::Job::QUEUED);
  v1::AttemptRef live;
  live.set_job(running);
  live.set_attempt(1);
  v1::AttemptRef stale;
  stale.set_job("projects/p/jobs/forgotten");
  stale.set_attempt(4);
  agent->Connect(server_->agent_listen(), {live, stale});
  EXPECT_EQ(agent->registered().coordinator_epoch(), epoch + 1);
  EXPECT_EQ(agent->registered().acknowledged_report(), 3)
      << "prepared, running, step; and nothing is asked for again";
  ASSERT_EQ(agent->registered().stale_attempts_size(), 1);
  EXPECT_EQ(agent->registered().stale_attempts(0).attempt(), 4);
  agent->Step(running, 1, 2);
  ASSERT_TRUE(agent->Commit(assign, 10, true).ok());
  agent->Finish(running, 1, true);
  EXPECT_EQ(State(running), v1::Job::SUCCEEDED);
  EXPECT_EQ(agent->AwaitAssign().job(), waiting);

  // Orders not carried out are given again by the next start.
  agent->Disconnect();
  Restart();
  agent->Connect(server_->agent_listen());
  EXPECT_EQ(agent->AwaitAssign().job(), waiting);
}

TEST_F(CoordinatorTest, ASilentNodeIsLostAndItsJobFails) {
  server_.reset();
  config_.lease_ttl = absl::Milliseconds(300);
  config_.heartbeat_interval = absl::Milliseconds(100);
  StartServer();
  FakeAgent agent(server_->agent_listen(), "a", 2);
  const std::string job = Submit("j");
  agent.AwaitAssign();
  agent.Prepare(job);
  agent.AwaitStart();
  agent.Run(job);
  AwaitState(job, v1::Job::FAILED);
  EXPECT_EQ(Get(job).job().failure().reason(), v1::NODE_LOST);
  EXPECT_EQ(Get(job).attempts(0).state(), v1::Attempt::LOST);
}

TEST_F(CoordinatorTest, SaysWhyAJobWaits) {
  FakeAgent agent(server_->agent_listen(), "a", 2);
  v1::JobSpec spec = MakeSpec(4);
  const std::string job = Submit("j", spec);
  v1::WatchJobRequest request;
  request.set_name(job);
  ASSERT_TRUE(Watch(request, [](const v1::WatchJobResponse& r) {
                return r.job().pending_reason() == v1::PENDING_REASON_CONSTRAINTS_UNSATISFIABLE;
              }).ok());
  EXPECT_THAT(Get(job).job().state_message(), AllOf(HasSubstr("needs 4"), HasSubstr("cpu: 2")));
  v1::PlanJobRequest plan;
  plan.set_parent("projects/p");
  *plan.mutable_spec() = spec;
  v1::PlanJobResponse response;
  ASSERT_TRUE(jobs_->PlanJob(MakeCall().get(), plan, &response).ok());
  EXPECT_FALSE(response.fits_cluster());
  EXPECT_FALSE(response.could_start_now());
  EXPECT_EQ(response.ranks_wanted(), 4);
  EXPECT_EQ(response.ranks_total(), 2);
  EXPECT_EQ(response.queue_position(), 1);
  EXPECT_EQ(response.micro_batches_per_step(), 2);
}

TEST_F(CoordinatorTest, CreateIsIdempotentByRequestId) {
  v1::CreateJobRequest request;
  request.set_parent("projects/p");
  request.set_request_id("3f1c0c52-0f3b-4c55-9f0b-000000000001");
  *request.mutable_job()->mutable_spec() = MakeSpec();
  (*request.mutable_job()->mutable_labels())["team"] = "a";
  v1::CreateJobResponse first;
  v1::CreateJobResponse second;
  ASSERT_TRUE(jobs_->CreateJob(MakeCall().get(), request, &first).ok());
  Restart();
  ASSERT_TRUE(jobs_->CreateJob(MakeCall().get(), request, &second).ok());
  EXPECT_EQ(first.job().uid(), second.job().uid());
  (*request.mutable_job()->mutable_labels())["team"] = "b";
  const grpc::Status status = jobs_->CreateJob(MakeCall().get(), request, &second);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ReasonOf(status), "IDEMPOTENCY_KEY_REUSED");
}

TEST_F(CoordinatorTest, ABadSpecIsRefusedWithAllItsFaults) {
  v1::CreateJobRequest request;
  request.set_parent("projects/p");
  request.set_job_id("Bad_Name");
  v1::JobSpec spec = MakeSpec(4);
  spec.mutable_batch()->set_global_batch_size(6);
  spec.mutable_parallel()->set_ep_size(3);
  spec.mutable_optimizer()->set_beta1(1.5);
  spec.mutable_model()->set_activation_memory(v1::ACTIVATION_MEMORY_OFFLOAD);
  *request.mutable_job()->mutable_spec() = spec;
  request.set_validate_only(true);
  v1::CreateJobResponse response;
  const grpc::Status status = jobs_->CreateJob(MakeCall().get(), request, &response);
  EXPECT_EQ(ReasonOf(status), "JOB_INVALID");
  google::rpc::Status details;
  google::rpc::BadRequest bad;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  ASSERT_EQ(details.details_size(), 2);
  ASSERT_TRUE(details.details(1).UnpackTo(&bad));
  std::set<std::string> fields;
  for (const auto& violation : bad.field_violations()) fields.insert(violation.field());
  EXPECT_EQ(fields, (std::set<std::string>{"job_id", "spec.batch.global_batch_size",
                                           "spec.parallel.ep_size", "spec.optimizer.beta1",
                                           "spec.model.activation_memory"}));
}

TEST_F(CoordinatorTest, ValidateOnlyStoresNothing) {
  v1::CreateJobRequest request;
  request.set_parent("projects/p");
  request.set_job_id("j");
  *request.mutable_job()->mutable_spec() = MakeSpec();
  request.set_validate_only(true);
  v1::CreateJobResponse response;
  ASSERT_TRUE(jobs_->CreateJob(MakeCall().get(), request, &response).ok());
  v1::GetJobRequest get;
  get.set_name("projects/p/jobs/j");
  v1::GetJobResponse got;
  const grpc::Status status = jobs_->GetJob(MakeCall().get(), get, &got);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(ReasonOf(status), "JOB_NOT_FOUND");
}

TEST_F(CoordinatorTest, PagesThroughJobsNewestFirst) {
  for (int i = 0; i < 5; ++i) Submit(absl::StrCat("j", i));
  v1::ListJobsRequest request;
  request.set_parent("projects/p");
  request.set_page_size(2);
  std::vector<std::string> names;
  do {
    v1::ListJobsResponse response;
    ASSERT_TRUE(jobs_->ListJobs(MakeCall().get(), request, &response).ok());
    for (const v1::Job& job : response.jobs()) names.push_back(job.name().substr(16));
    request.set_page_token(response.next_page_token());
    if (names.size() == 2) Submit("later");  // does not disturb the pages
  } while (!request.page_token().empty());
  EXPECT_THAT(names, ElementsAre("j4", "j3", "j2", "j1", "j0"));

  v1::ListJobsResponse response;
  request.set_page_size(1);
  request.clear_page_token();
  ASSERT_TRUE(jobs_->ListJobs(MakeCall().get(), request, &response).ok());
  request.set_page_token(response.next_page_token());
  request.add_states(v1::Job::FAILED);  // another query
  EXPECT_EQ(ReasonOf(jobs_->ListJobs(MakeCall().get(), request, &response)), "PAGE_TOKEN_INVALID");
  request.set_page_size(-1);
  EXPECT_EQ(ReasonOf(jobs_->ListJobs(MakeCall().get(), request, &response)), "PAGE_SIZE_INVALID");
}

TEST_F(CoordinatorTest, AWatchReplaysThenFollowsToTheEnd) {
  FakeAgent agent(server_->agent_listen(), "a", 2);
  const std::string job = Submit("j");
  const v1::Assign assign = agent.AwaitAssign();
  agent.Prepare(job);
  agent.AwaitStart();
  agent.Run(job);
  for (int step = 1; step <= 40; ++step) agent.Step(job, 1, step);

  v1::WatchJobRequest request;
  request.set_name(job);
  request.set_include_metrics(true);
  request.set_after_step(3);
  std::vector<int64_t> events;
  std::vector<int64_t> steps;
  bool live = false;
  bool heartbeat = false;
  v1::Job::State last = v1::Job::STATE_UNSPECIFIED;
  const grpc::Status status = Watch(request, [&](const v1::WatchJobResponse& r) {
    if (r.has_event()) {
      events.push_back(r.event().sequence());
      last = r.event().state();
      EXPECT_EQ(r.job().name(), job);
    }
    if (r.has_metrics()) steps.push_back(r.metrics().step());
    if (r.has_heartbeat() && !live) {  // the replay is over
      heartbeat = live = true;
      agent.Step(job, 1, 41);
      EXPECT_TRUE(agent.Commit(assign, 41, true).ok());
      agent.Finish(job, 1, true);
    }
    return false;
  });
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(heartbeat);
  EXPECT_EQ(last, v1::Job::SUCCEEDED);
  ASSERT_THAT(steps, SizeIs(38));
  for (size_t i = 0; i < steps.size(); ++i) EXPECT_EQ(steps[i], static_cast<int64_t>(i) + 4);
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i], static_cast<int64_t>(i) + 1);

  request.set_after_sequence(events[events.size() - 2]);
  request.set_after_step(41);
  int items = 0;
  EXPECT_TRUE(Watch(request, [&](const auto&) { return ++items < 0; }).ok());
  EXPECT_EQ(items, 1) << "a finished job is replayed from the position, then the stream ends";
}

TEST_F(CoordinatorTest, AWatchGoesOnExactlyAfterItsToken) {
  FakeAgent agent(server_->agent_listen(), "a", 2);
  const std::string job = Submit("j");
  const v1::Assign assign = agent.AwaitAssign();
  agent.Prepare(job);
  agent.AwaitStart();
  agent.Run(job);
  for (int step = 1; step <= 5; ++step) agent.Step(job, 1, step);
  EXPECT_TRUE(agent.Commit(assign, 5, true).ok());
  agent.Finish(job, 1, true);
  v1::WatchJobRequest request;
  request.set_name(job);
  request.set_include_metrics(true);
  std::vector<std::string> whole;
  std::vector<std::string> tokens;
  const auto item = [](const v1::WatchJobResponse& r) {
    return r.has_event() ? "e" + std::to_string(r.event().sequence())
                         : "s" + std::to_string(r.metrics().step());
  };
  ASSERT_TRUE(Watch(request, [&](const v1::WatchJobResponse& r) {
                if (r.has_heartbeat()) return false;
                whole.push_back(item(r));
                tokens.push_back(r.resume_token());
                return false;
              }).ok());
  ASSERT_GT(whole.size(), 10u);
  for (size_t cut = 0; cut < tokens.size(); ++cut) {
    request.set_resume_token(tokens[cut]);
    std::vector<std::string> joined(whole.begin(), whole.begin() + static_cast<long>(cut) + 1);
    ASSERT_TRUE(Watch(request, [&](const v1::WatchJobResponse& r) {
                  joined.push_back(item(r));
                  return false;
                }).ok());
    EXPECT_EQ(joined, whole) << "cut after " << cut;
  }
  request.set_resume_token("nonsense");
  EXPECT_EQ(Watch(request, [](const auto&) { return false; }).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(CoordinatorTest, PausesDrainsAndGoesOnFromTheCheckpoint) {
  const auto channel = grpc::CreateChannel(server_->listen(), grpc::InsecureChannelCredentials());
  const auto admin = v1::AdminService::NewStub(channel);
  FakeAgent agent(server_->agent_listen(), "a", 2);
  v1::JobSpec spec = MakeSpec(2);
  spec.mutable_checkpoint()->set_save_optimizer(true);
  const std::string job = Submit("j", spec);
  const v1::Assign assign = agent.AwaitAssign();
  agent.Prepare(job);
  agent.AwaitStart();
  agent.Run(job);
  agent.Step(job, 1, 3);
  ASSERT_TRUE(agent.Commit(assign, 3, false).ok());
  {
    grpc::ClientContext context;
    v1::PauseJobRequest request;
    v1::PauseJobResponse response;
    request.set_name(job);
    ASSERT_TRUE(jobs_->PauseJob(&context, request, &response).ok());
    EXPECT_EQ(response.job().state(), v1::Job::STOPPING);
    EXPECT_EQ(response.job().stop_reason(), v1::STOP_REASON_USER);
  }
  agent.Finish(job, 1, false, true);
  AwaitState(job, v1::Job::PAUSED);
  {
    grpc::ClientContext context;
    v1::CordonNodeRequest request;
    v1::CordonNodeResponse response;
    request.set_node("a");
    request.set_message("fan");
    ASSERT_TRUE(admin->CordonNode(&context, request, &response).ok());
    EXPECT_EQ(response.node().scheduling(), v1::Node::CORDONED);
    EXPECT_EQ(response.node().contact(), v1::Node::REACHABLE);
  }
  {
    grpc::ClientContext context;
    v1::ConfirmNodeDeadRequest request;
    v1::ConfirmNodeDeadResponse response;
    request.set_node("a");
    EXPECT_EQ(admin->ConfirmNodeDead(&context, request, &response).error_code(),
              grpc::StatusCode::FAILED_PRECONDITION)
        << "it is alive";
  }
  {
    grpc::ClientContext context;
    v1::ResumeJobRequest request;
    v1::ResumeJobResponse response;
    request.set_name(job);
    ASSERT_TRUE(jobs_->ResumeJob(&context, request, &response).ok());
    EXPECT_EQ(response.job().state(), v1::Job::QUEUED);
  }
  {
    grpc::ClientContext context;
    v1::ResumeNodeRequest request;
    v1::ResumeNodeResponse response;
    request.set_node("a");
    ASSERT_TRUE(admin->ResumeNode(&context, request, &response).ok());
  }
  const v1::Assign again = agent.AwaitAssign();
  EXPECT_EQ(again.attempt(), 2);
  EXPECT_THAT(again.resume_from(), HasSubstr("step-3"));
}

TEST_F(CoordinatorTest, ManyIdleWatchersNeedNoThreadsEach) {
  const std::string job = Submit("j");
  const auto threads = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/task"),
                         std::filesystem::directory_iterator());
  };
  std::vector<std::unique_ptr<grpc::ClientContext>> calls;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::WatchJobResponse>>> streams;
  v1::WatchJobRequest request;
  request.set_name(job);
  v1::WatchJobResponse response;
  const auto before = threads();
  for (int i = 0; i < 200; ++i) {
    calls.push_back(MakeCall());
    streams.push_back(jobs_->WatchJob(calls.back().get(), request));
    ASSERT_TRUE(streams.back()->Read(&response)) << i;
  }
  EXPECT_LT(threads() - before, 40);
  EXPECT_EQ(State(job), v1::Job::QUEUED) << "other calls are still answered";
  ASSERT_TRUE(Cancel(job).ok());
  for (auto& stream : streams) {
    while (stream->Read(&response)) {
    }
    EXPECT_TRUE(stream->Finish().ok());
  }
}

TEST_F(CoordinatorTest, LogsAreReadByExactPositionsAndFollowed) {
  FakeAgent agent(server_->agent_listen(), "a", 2);
  const std::string job = Submit("j");
  const v1::Assign assign = agent.AwaitAssign();
  const std::string big(100000, 'x');
  agent.Log(job, 1, 0, 0, "one\ntwo\nthree\n");
  agent.Log(job, 1, 0, 0, "one\ntwo\nthree\n");  // sent again after a cut
  agent.Log(job, 1, 1, 0, big);

  const auto read = [&](const v1::ReadLogsRequest& request) {
    std::map<int, std::string> out;
    auto call = MakeCall();
    auto stream = jobs_->ReadLogs(call.get(), request);
    v1::ReadLogsResponse response;
    while (stream->Read(&response)) {
      EXPECT_LE(response.data().size(), 65536u);
      out[response.position().rank()] += response.data();
    }
    EXPECT_TRUE(stream->Finish().ok());
    return out;
  };
  v1::ReadLogsRequest request;
  request.set_name(job);
  EXPECT_EQ(read(request), (std::map<int, std::string>{{0, "one\ntwo\nthree\n"}, {1, big}}));
  request.add_ranks(0);
  request.set_tail_lines(2);
  EXPECT_EQ(read(request)[0], "two\nthree\n");
  request.clear_tail_lines();
  v1::LogPosition* position = request.add_positions();
  position->set_attempt(1);
  position->set_stream("stdout");
  position->set_offset(5);
  EXPECT_EQ(read(request)[0], "wo\nthree\n");

  request.set_follow(true);
  std::map<int, std::string> followed;
  Thread reader("reader", [&](const StopToken&) { followed = read(request); });
  agent.Log(job, 1, 0, 14, "four\n");
  agent.Prepare(job);
  agent.AwaitStart();
  agent.Run(job);
  ASSERT_TRUE(agent.Commit(assign, 1, true).ok());
  agent.Finish(job, 1, true);
  reader.StopAndJoin();
  EXPECT_EQ(followed[0], "wo\nthree\nfour\n");
  request.Clear();
  request.set_name(job);
  request.set_attempt(7);
  auto call = MakeCall();
  auto stream = jobs_->ReadLogs(call.get(), request);
  v1::ReadLogsResponse response;
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(ReasonOf(stream->Finish()), "ATTEMPT_NOT_FOUND");
}

TEST_F(CoordinatorTest, AFollowerFromTheQueueReadsEveryAttempt) {
  v1::JobSpec spec = MakeSpec();
  spec.mutable_retry()->set_max_retries(1);
  const std::string job = Submit("j", spec);
  v1::ReadLogsRequest request;
  request.set_name(job);
  request.set_follow(true);
  v1::LogPosition* start = request.add_positions();  // before there is an attempt
  start->set_attempt(1);
  start->set_stream("stdout");
  auto call = MakeCall();
  auto stream = jobs_->ReadLogs(call.get(), request);

  FakeAgent agent(server_->agent_listen(), "a", 2);
  for (int attempt : {1, 2}) {
    const v1::Assign assign = agent.AwaitAssign();
    agent.Prepare(job, attempt);
    agent.AwaitStart();
    agent.Run(job, attempt);
    agent.Log(job, attempt, 0, 0, absl::StrCat("attempt ", attempt, "\n"));
    if (attempt == 1) {
      v1::Failure* failure = agent.Say(job, 1).mutable_rank_failed()->mutable_failure();
      failure->set_reason(v1::TRAINER_SIGNAL);
      agent.Finish(job, 1, false);
    } else {
      ASSERT_TRUE(agent.Commit(assign, 1, true).ok());
      agent.Finish(job, 2, true);
    }
  }
  std::string logs;
  v1::ReadLogsResponse response;
  while (stream->Read(&response)) {
    EXPECT_EQ(response.position().attempt(), logs.empty() ? 1 : 2);
    logs += response.data();
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(logs, "attempt 1\nattempt 2\n");
  EXPECT_EQ(State(job), v1::Job::SUCCEEDED);
}

TEST_F(CoordinatorTest, AStaleAgentIsToldSo) {
  FakeAgent agent(server_->agent_listen(), "a", 2);
  v1::ReportRequest report;
  report.set_node("a");
  report.set_incarnation("another life");
  v1::ReportResponse answer;
  const grpc::Status status = agent.stub().Report(MakeCall().get(), report, &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(ReasonOf(status), "STALE_INCARNATION");
  v1::RegisterRequest other;
  other.set_node("a");
  other.set_incarnation("elsewhere");
  other.set_boot_id("another machine");
  v1::RegisterResponse registered;
  const grpc::Status taken = agent.stub().Register(MakeCall().get(), other, &registered);
  EXPECT_EQ(taken.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(ReasonOf(taken), "NODE_NAME_TAKEN");
  // The folder is stored: a coordinator that restarts still knows its agents apart.
  agent.Disconnect();
  Restart();
  const auto stub = v1::AgentLink::NewStub(
      grpc::CreateChannel(server_->agent_listen(), grpc::InsecureChannelCredentials()));
  other.set_boot_id("boot");
  other.set_state_folder("/state/b");
  const grpc::Status differs = stub->Register(MakeCall().get(), other, &registered);
  EXPECT_EQ(differs.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(ReasonOf(differs), "STATE_FOLDER_DIFFERS");
  EXPECT_THAT(differs.error_message(), AllOf(HasSubstr("'/state/a'"), HasSubstr("'/state/b'")));
  agent.Connect(server_->agent_listen());
  v1::AttemptRef gone;
  gone.set_job("projects/p/jobs/gone");
  gone.set_attempt(3);
  agent.Heartbeat({gone});
  EXPECT_EQ(agent.AwaitStop().attempt(), 3);
}

}  // namespace
}  // namespace switchyard
