// What an agent does while its coordinator is away, wrong or silent, and when it ends itself.
#include <signal.h>

#include <string>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "tests/agent/agent_fixture.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

v1::AttemptRef Ref(int attempt) {
  v1::AttemptRef ref;
  ref.set_job(kJob);
  ref.set_attempt(attempt);
  return ref;
}

TEST(RetryDelayTest, GrowsToFiveSecondsOrAnEighthOfTheLease) {
  for (int i = 0; i < 100; ++i) {
    EXPECT_GE(RetryDelay(0, absl::Minutes(2)), absl::Milliseconds(100));
    EXPECT_LE(RetryDelay(0, absl::Minutes(2)), absl::Milliseconds(200));
    EXPECT_GE(RetryDelay(1000, absl::Minutes(2)), absl::Milliseconds(2500));
    EXPECT_LE(RetryDelay(1000, absl::Minutes(2)), absl::Seconds(5));
    EXPECT_LE(RetryDelay(1000, absl::Seconds(2)), absl::Milliseconds(250));
  }
}

TEST_F(AgentTest, ReportsSurviveARestartOfTheCoordinator) {
  StartAgent();
  ASSERT_TRUE(coordinator_.Send(Assign({"ok", "ok"})));
  ASSERT_TRUE(WaitForReport(v1::Report::kPrepared));
  coordinator_.Configure([](auto& b) { b.refuse_reports = true; });
  ASSERT_TRUE(coordinator_.Send(StartOrder()));
  // The job ends while nobody takes reports.
  ASSERT_TRUE(Eventually([&] { return agent_->Snapshot().attempts.empty(); }));
  EXPECT_GE(agent_->Snapshot().pending_reports, 5);
  coordinator_.Stop();
  coordinator_.Configure([](auto& b) {
    b.refuse_reports = false;
    b.epoch = 2;
  });
  coordinator_.Start();
  EXPECT_TRUE(AwaitFinished().succeeded());
  EXPECT_EQ(ReportsOf(coordinator_.record(), v1::Report::kStep).size(), 3u);
  EXPECT_TRUE(Eventually([&] { return agent_->Snapshot().pending_reports == 0; }));
}

TEST_F(AgentTest, ReportsWhoseAnswerWasLostComeAgainUnchanged) {
  StartAgent();
  coordinator_.Configure([](auto& b) { b.lose_report_answers = true; });
  ASSERT_TRUE(coordinator_.Send(Assign({"flood:200000"})));
  ASSERT_TRUE(WaitForReport(v1::Report::kPrepared));
  ASSERT_TRUE(coordinator_.Send(StartOrder()));
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.num_resent >= 3; }));
  coordinator_.Configure([](auto& b) { b.lose_report_answers = false; });
  EXPECT_TRUE(AwaitFinished().succeeded());
  EXPECT_THAT(LogOf(coordinator_.record(), 0, "stdout"), testing::Not(HasSubstr("<gap>")));
}

TEST_F(AgentTest, TrainersOutliveACoordinatorRestart) {
  StartAgent();
  Launch({"obey", "obey"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  const std::vector<pid_t> pids = AwaitTrainers(2);
  coordinator_.Stop();
  coordinator_.Configure([](auto& b) { b.epoch = 2; });
  coordinator_.Start();
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.registrations.size() >= 2; }));
  const v1::RegisterRequest again = coordinator_.record().registrations.back();
  EXPECT_EQ(again.incarnation(), agent_->incarnation());
  ASSERT_EQ(again.live_attempts_size(), 1);
  EXPECT_EQ(again.live_attempts(0).job(), kJob);
  for (const pid_t pid : pids) EXPECT_TRUE(ProcessExists(pid));
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::Minutes(10), false)));
  EXPECT_TRUE(AwaitFinished().stopped());
}

TEST_F(AgentTest, RepeatedOrdersHaveNoEffect) {
  StartAgent();
  Launch({"obey"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  ASSERT_TRUE(coordinator_.Send(Assign({"obey"})));
  ASSERT_TRUE(coordinator_.Send(StartOrder()));
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::Minutes(10), false)));
  EXPECT_TRUE(AwaitFinished().stopped());
  const CoordinatorRecord record = coordinator_.record();
  EXPECT_EQ(ReportsOf(record, v1::Report::kPrepared).size(), 1u);
  EXPECT_EQ(ReportsOf(record, v1::Report::kRunning).size(), 1u);
}

TEST_F(AgentTest, AnswersOrdersForAttemptsItNeverHad) {
  StartAgent();
  ASSERT_TRUE(coordinator_.Send(StartOrder(4)));
  EXPECT_EQ(AwaitFinished(4).failure().reason(), v1::EXIT_UNKNOWN);
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::ZeroDuration(), false, 5)));
  EXPECT_TRUE(AwaitFinished(5).stopped());
  // A lower number, and the one that was stopped before it came, are fenced off.
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "ok", 3)));
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "ok", 5)));
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "ok", 6)));
  ASSERT_TRUE(WaitForReport(v1::Report::kPrepared, 6));
  EXPECT_TRUE(ReportsOf(coordinator_.record(), v1::Report::kPrepared, 3).empty());
  EXPECT_TRUE(ReportsOf(coordinator_.record(), v1::Report::kPrepared, 5).empty());
}

TEST_F(AgentTest, StaleAttemptNamedAtRegistrationIsKilled) {
  StartAgent();
  Launch({"stubborn"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  const std::vector<pid_t> pids = AwaitTrainers(1);
  coordinator_.Stop();
  coordinator_.Configure([](auto& b) { b.stale_at_register = {Ref(1)}; });
  coordinator_.Start();
  EXPECT_TRUE(AwaitFinished().stopped());
  EXPECT_FALSE(ProcessExists(pids[0]));
}

TEST_F(AgentTest, StaleAttemptNamedInAReportAnswerIsKilled) {
  StartAgent();
  coordinator_.Configure([](auto& b) { b.stale_at_report = {Ref(1)}; });
  ASSERT_TRUE(coordinator_.Send(Assign({"stubborn"})));
  EXPECT_TRUE(AwaitFinished().stopped());  // Prepared was answered so
}

TEST_F(AgentTest, NewerAttemptReplacesTheOlderOneOnItsDevices) {
  StartAgent();
  Launch({"stubborn", "stubborn"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  const std::vector<pid_t> pids = AwaitTrainers(2);
  Launch({"ok", "ok"}, 2);
  EXPECT_TRUE(AwaitFinished(2).succeeded());
  EXPECT_TRUE(AwaitFinished(1).stopped());
  for (const pid_t pid : pids) EXPECT_FALSE(ProcessExists(pid));
}

TEST_F(AgentTest, CommitIsRetriedWhileTheCoordinatorIsAway) {
  coordinator_.Configure([](auto& b) { b.refuse_commits = 2; });
  StartAgent();
  Launch({"ok"});
  EXPECT_TRUE(AwaitFinished().succeeded());
  EXPECT_EQ(coordinator_.record().commits.size(), 3u);
}

TEST_F(AgentTest, PendingCommitDoesNotHoldUpAStop) {
  coordinator_.Configure([](auto& b) { b.refuse_commits = 1'000'000; });
  StartAgent();
  Launch({"ok"});
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return !r.commits.empty(); }));
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::ZeroDuration(), false)));
  EXPECT_TRUE(AwaitFinished().stopped());
}

// A trainer waits for its last commit only so long; the agent goes on.
TEST_F(AgentTest, LastCommitOutlivesItsGang) {
  coordinator_.Configure([](auto& b) { b.refuse_commits = 1'000'000; });
  StartAgent();
  Launch({"impatient"});
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return !r.commits.empty(); }));
  EXPECT_TRUE(Eventually([&] {
    const auto attempts = agent_->Snapshot().attempts;
    return attempts.size() == 1 && attempts.begin()->second.empty();
  })) << "the attempt is to live on without a process";
  EXPECT_THAT(ReportsOf(coordinator_.record(), v1::Report::kFinished), IsEmpty());
  coordinator_.Configure([](auto& b) { b.refuse_commits = 0; });
  EXPECT_TRUE(AwaitFinished().succeeded());
  EXPECT_TRUE(coordinator_.record().commits.back().final());
}

TEST_F(AgentTest, StopEndsTheLastCommitOfAGangThatIsGone) {
  coordinator_.Configure([](auto& b) { b.refuse_commits = 1'000'000; });
  StartAgent();
  Launch({"impatient"});
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return !r.commits.empty(); }));
  ASSERT_TRUE(Eventually([&] {
    const auto attempts = agent_->Snapshot().attempts;
    return attempts.size() == 1 && attempts.begin()->second.empty();
  }));
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::ZeroDuration(), false)));
  EXPECT_TRUE(AwaitFinished().stopped());
}

TEST_F(AgentTest, CoordinatorWithALowerEpochIsRefused) {
  coordinator_.Configure([](auto& b) { b.epoch = 5; });
  StartAgent();
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.num_heartbeats >= 1; }));
  coordinator_.Stop();
  coordinator_.Configure([](auto& b) { b.epoch = 4; });
  coordinator_.Start();
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.registrations.size() >= 3; }));
  EXPECT_EQ(coordinator_.record().num_sessions, 1);
  EXPECT_FALSE(agent_->Snapshot().connected);
  coordinator_.Configure([](auto& b) { b.epoch = 6; });
  EXPECT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.num_sessions == 2; }));
}

TEST_F(AgentTest, SilentCoordinatorCostsTheLeaseAndTheAttempt) {
  coordinator_.Configure([](auto& b) { b.lease_ttl = absl::Seconds(4); });
  StartAgent();
  Launch({"stubborn", "stubborn"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  const std::vector<pid_t> pids = AwaitTrainers(2);
  coordinator_.Configure([](auto& b) {
    b.acknowledge_heartbeats = false;
    b.refuse_registrations = true;
    b.refuse_reports = true;
  });
  const absl::Duration begin = RealClock::Get().Monotonic();
  ASSERT_TRUE(Eventually([&] { return !ProcessExists(pids[0]) && !ProcessExists(pids[1]); }));
  // Dead before the coordinator may think so, and not much too early.
  EXPECT_LT(RealClock::Get().Monotonic() - begin, absl::Seconds(4));
  EXPECT_GT(RealClock::Get().Monotonic() - begin, absl::Seconds(1));
  coordinator_.Configure([](auto& b) {
    b.acknowledge_heartbeats = true;
    b.refuse_registrations = false;
    b.refuse_reports = false;
  });
  const v1::Finished finished = AwaitFinished();
  EXPECT_EQ(finished.failure().reason(), v1::NODE_LOST);
  EXPECT_THAT(finished.failure().message(), HasSubstr("lease ran out on node n1"));
}

TEST_F(AgentTest, AcknowledgedHeartbeatsKeepTheLease) {
  coordinator_.Configure([](auto& b) { b.lease_ttl = absl::Seconds(2); });
  StartAgent();
  Launch({"obey"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  // 60 heartbeats of 50 ms: longer than one lease.
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.num_heartbeats >= 60; }));
  EXPECT_TRUE(ReportsOf(coordinator_.record(), v1::Report::kFinished).empty());
  EXPECT_EQ(coordinator_.record().last_heartbeat.live_attempts_size(), 1);
}

TEST_F(AgentTest, ShutdownStopsAndReports) {
  StartAgent();
  Launch({"stubborn", "hang"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  const std::vector<pid_t> pids = AwaitTrainers(2);
  EXPECT_TRUE(agent_->Shutdown());
  for (const pid_t pid : pids) EXPECT_FALSE(ProcessExists(pid));
  const v1::Finished finished = AwaitFinished();
  EXPECT_FALSE(finished.stopped());
  EXPECT_EQ(finished.failure().reason(), v1::DRAINED);
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "ok", 2)));
  EXPECT_EQ(AwaitFinished(2).failure().reason(), v1::DRAINED);
}

TEST_F(AgentTest, DestructionKillsWhatIsAlive) {
  StartAgent();
  Launch({"stubborn", "stubborn"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  const std::vector<pid_t> pids = AwaitTrainers(2);
  agent_.reset();
  for (const pid_t pid : pids) EXPECT_FALSE(ProcessExists(pid));
}

TEST_F(AgentTest, SecondAgentOnOneStateFolderIsRefused) {
  StartAgent();
  const auto second =
      Agent::Start(config_, CpuDevices(1), std::make_shared<AgentMetrics>(), RealClock::Get());
  EXPECT_THAT(second, StatusIs(absl::StatusCode::kFailedPrecondition,
                               HasSubstr("another agent uses this state folder")));
}

TEST_F(AgentTest, StartsBeforeTheCoordinatorDoes) {
  coordinator_.Stop();
  StartAgent();
  coordinator_.Start();
  Launch({"ok"});
  EXPECT_TRUE(AwaitFinished().succeeded());
}

}  // namespace
}  // namespace switchyard
