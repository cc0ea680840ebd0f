// WatchJob and ReadLogs.
#include "server/api/coordinator_testing.h"
#include "server/store/store.h"

namespace switchyard {
namespace {

using testing::SizeIs;

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

TEST_F(CoordinatorTest, WatchOfAPrunedHistorySaysWhereItBegins) {
  const std::string job = Submit("j");
  v1::PauseJobRequest pause;
  pause.set_name(job);
  v1::PauseJobResponse paused;
  ASSERT_TRUE(jobs_->PauseJob(MakeCall().get(), pause, &paused).ok());
  ASSERT_TRUE(Cancel(job).ok());
  v1::WatchJobRequest request;
  request.set_name(job);
  std::vector<std::string> tokens;
  int64_t last = 0;
  ASSERT_TRUE(Watch(request, [&](const v1::WatchJobResponse& r) {
                tokens.push_back(r.resume_token());
                last = r.event().sequence();
                return false;
              }).ok());
  ASSERT_GE(last, 3);
  server_.reset();
  {
    StoreOptions options;
    options.folder = config_.state_dir;
    const auto store = Store::Open(std::move(options), RealClock::Get());
    ASSERT_THAT(store, IsOk());
    ASSERT_TRUE(*(*store)->PruneHistory(absl::Now() + absl::Hours(1)));
  }
  StartServer();
  const auto none = [](const auto&) { return false; };
  request.set_resume_token(tokens[0]);
  EXPECT_EQ(Watch(request, none).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  request.clear_resume_token();
  request.set_after_sequence(1);
  const grpc::Status refused = Watch(request, none);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_THAT(refused.error_message(), testing::HasSubstr("before event " + std::to_string(last)));
  request.clear_after_sequence();
  int64_t first = 0;
  EXPECT_TRUE(Watch(request, [&](const auto& r) {
                first = r.event().sequence();
                return false;
              }).ok());
  EXPECT_EQ(first, last) << "from the start begins where the history does";
  request.set_resume_token(tokens.back());
  EXPECT_TRUE(Watch(request, none).ok()) << "nothing was missed";
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

}  // namespace
}  // namespace switchyard
