// Jobs and gangs over real gRPC channels, from submission to their ends.
#include "server/api/coordinator_testing.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

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
  ASSERT_TRUE(checkpoints_->ListCheckpoints(MakeCall().get(), request, &response).ok());
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
