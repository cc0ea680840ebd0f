// JobService and AdminService: calls that answer once.
#include "server/api/coordinator_testing.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

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

TEST_F(CoordinatorTest, ARetryIsANewJobFromTheNewestCheckpoint) {
  FakeAgent agent(server_->agent_listen(), "a", 2);
  v1::JobSpec spec = MakeSpec();
  const std::string job = Submit("j", spec);
  const v1::Assign first = agent.AwaitAssign();
  agent.Prepare(job);
  agent.AwaitStart();
  agent.Run(job);
  v1::Checkpoint checkpoint;
  ASSERT_TRUE(agent.Commit(first, 5, false, &checkpoint).ok());
  const auto retry = [&](v1::RetryJobResponse* response) {
    v1::RetryJobRequest request;
    request.set_name(job);
    request.set_job_id("j2");
    request.set_request_id("r1");
    // Until the checksums are read.
    while (true) {
      const grpc::Status status = jobs_->RetryJob(MakeCall().get(), request, response);
      if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return status;
    }
  };
  v1::RetryJobResponse response;
  const grpc::Status live = retry(&response);
  EXPECT_EQ(live.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(live), "NOT_RETRYABLE");

  v1::Failure* failure = agent.Say(job, 1).mutable_rank_failed()->mutable_failure();
  failure->set_reason(v1::OOM_GPU);
  agent.Send();
  agent.AwaitStop();
  agent.Finish(job, 1, false);
  AwaitState(job, v1::Job::FAILED);
  for (int i = 0; i < 2; ++i) {
    const grpc::Status status = retry(&response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.job().name(), "projects/p/jobs/j2") << "the same request, the same job";
  }
  EXPECT_EQ(response.job().labels().at("retry-of"), "j");
  EXPECT_EQ(response.job().spec().checkpoint().restore_from(), checkpoint.path());
  EXPECT_EQ(response.job().spec().batch().max_steps(), spec.batch().max_steps());
  EXPECT_EQ(Get(job).job().state(), v1::Job::FAILED) << "final states are final";
  const v1::Assign again = agent.AwaitAssign();
  EXPECT_EQ(again.job(), "projects/p/jobs/j2");
  EXPECT_EQ(again.resume_from(), "") << "the spec says it";
}

TEST_F(CoordinatorTest, AFlappingNodeIsShownAsQuarantinedAndResumedByAnOperator) {
  const auto admin = v1::AdminService::NewStub(
      grpc::CreateChannel(server_->listen(), grpc::InsecureChannelCredentials()));
  FakeAgent agent(server_->agent_listen(), "a", 2);
  for (int life = 0; life < 3; ++life) {
    FakeAgent next(server_->agent_listen(), "a", 2, absl::StrCat("life-", life));
  }
  const std::string job = Submit("j", MakeSpec());
  v1::ListNodesResponse nodes;
  const auto deadline = absl::Now() + kDeadline;
  while (absl::Now() < deadline) {  // the scheduler's next round
    ASSERT_TRUE(admin->ListNodes(MakeCall().get(), v1::ListNodesRequest(), &nodes).ok());
    if (!nodes.nodes(0).quarantine().empty()) break;
  }
  EXPECT_THAT(nodes.nodes(0).quarantine(), HasSubstr("came and went"));
  EXPECT_EQ(nodes.nodes(0).scheduling(), v1::Node::ACTIVE)
      << "the operator's own is another matter";
  v1::ResumeNodeRequest request;
  request.set_node("a");
  v1::ResumeNodeResponse response;
  ASSERT_TRUE(admin->ResumeNode(MakeCall().get(), request, &response).ok());
  EXPECT_EQ(response.node().quarantine(), "");
}

}  // namespace
}  // namespace switchyard
