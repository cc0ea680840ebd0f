// Agents, shims and trainers killed or stopped one by one: what the next agent on the same state
// folder makes of it.
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <string>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "tests/agent/agent_fixture.h"
#include "worker/agent/job_files.h"
#include "worker/shim/attempt_files.h"
#include "worker/shim/containment.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// What is left until a process's timerfd rings.
absl::Duration TimerOf(pid_t pid) {
  std::error_code error;
  const std::string folder = absl::StrCat("/proc/", pid, "/fdinfo");
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string text = ReadFile(entry.path().string()).value_or("");
    const size_t at = text.find("it_value: (");
    int64_t seconds = 0;
    if (at != std::string::npos &&
        absl::SimpleAtoi(text.substr(at + 11, text.find(',', at) - at - 11), &seconds)) {
      return absl::Seconds(seconds);
    }
  }
  return absl::InfiniteDuration();
}

class AgentRestartTest : public AgentProgramTest {
 protected:
  void TearDown() override {
    if (program_ != nullptr) {
      ::kill(program_->pid(), SIGCONT);
      ::kill(program_->pid(), SIGTERM);
      EXPECT_TRUE(Eventually([&] { return program_->HasEnded(); }));
      program_->Reap();
    }
    AgentProgramTest::TearDown();
  }
  void StartIt(const std::vector<std::string>& flags = {}) {
    auto program = StartProgram(flags);
    ASSERT_THAT(program, IsOk());
    program_ = *std::move(program);
  }
  void KillIt() {
    ::kill(program_->pid(), SIGKILL);
    ASSERT_TRUE(Eventually([&] { return program_->HasEnded(); }));
    program_->Reap();
    program_.reset();
  }
  MappedFile<ShimStatus> Status(int attempt = 1) {
    MappedFile<ShimStatus> status;
    const std::string folder =
        AttemptFolder(config_.state_dir, {JobId(kJob), attempt}).value_or("");
    EXPECT_EQ(status.Open(absl::StrCat(folder, "/", kStatusFile), false), 0);
    return status;
  }
  bool WaitForStep(int64_t step) {
    return coordinator_.WaitFor([step](const CoordinatorRecord& record) {
      const auto steps = ReportsOf(record, v1::Report::kStep);
      return !steps.empty() && steps.back().step().step() >= step;
    });
  }
  // Steps 1 to `count`, each once and in order; and their lines, on both ranks.
  void ExpectNothingLost(int count) {
    const CoordinatorRecord record = coordinator_.record();
    const auto steps = ReportsOf(record, v1::Report::kStep);
    ASSERT_EQ(steps.size(), static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) ASSERT_EQ(steps[static_cast<size_t>(i)].step().step(), i + 1);
    EXPECT_THAT(steps[0].step().rank_busy_seconds(), ElementsAre(0.004, 0.005));
    std::string lines;
    for (int i = 1; i <= count; ++i) absl::StrAppend(&lines, "line ", i, "\n");
    for (int rank = 0; rank < 2; ++rank) {
      const std::string log = LogOf(record, rank, "stdout");
      EXPECT_EQ(log.substr(log.find('\n') + 1), lines) << "rank " << rank;  // after the config
    }
    EXPECT_EQ(ReportsOf(record, v1::Report::kRunning).size(), 1u);
    EXPECT_EQ(ReportsOf(record, v1::Report::kPrepared).size(), 1u);
  }

  std::unique_ptr<Subprocess> program_;
};

TEST_F(AgentRestartTest, KilledAgentLosesAndDoublesNothing) {
  StartIt();
  Launch({"steps:300", "steps:300"});
  for (const int step : {10, 60, 61, 150}) {
    ASSERT_TRUE(WaitForStep(step));
    KillIt();
    StartIt();
  }
  EXPECT_TRUE(AwaitFinished().succeeded());
  ExpectNothingLost(300);
  std::set<std::string> incarnations;
  for (const v1::RegisterRequest& request : coordinator_.record().registrations) {
    incarnations.insert(request.incarnation());
  }
  EXPECT_EQ(incarnations.size(), 1u) << "one state folder in one boot is one incarnation";
}

TEST_F(AgentRestartTest, GangMayEndWhileItsAgentIsDead) {
  StartIt();
  Launch({"steps:60", "steps:60"});
  ASSERT_TRUE(WaitForStep(5));
  KillIt();
  MappedFile<ShimStatus> status = Status();
  ASSERT_TRUE(Eventually([&] { return status->finished.load() != 0; }));
  StartIt();
  EXPECT_TRUE(AwaitFinished().succeeded());
  ExpectNothingLost(60);
}

TEST_F(AgentRestartTest, FailureWhileTheAgentIsDeadKeepsItsExitCode) {
  StartIt();
  Launch({"obey", "crash_on_stop"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  KillIt();
  MappedFile<ShimStatus> status = Status();
  ::kill(status->ranks[1].pid.load(), SIGSEGV);
  ASSERT_TRUE(Eventually([&] { return status->ranks[1].ended.load() != 0; }));
  StartIt();
  const v1::Failure failure = AwaitFinished().failure();
  EXPECT_EQ(failure.reason(), v1::TRAINER_SIGNAL);
  EXPECT_EQ(failure.signal(), SIGSEGV);
  EXPECT_EQ(failure.rank(), 1);
}

TEST_F(AgentRestartTest, StopOrderIsRememberedAndReachesAdoptedTrainers) {
  StartIt();
  Launch({"obey", "obey"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  KillIt();
  StartIt();
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.registrations.size() >= 2; }));
  const v1::RegisterRequest again = coordinator_.record().registrations.back();
  ASSERT_EQ(again.live_attempts_size(), 1);
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::Minutes(10), true)));
  EXPECT_TRUE(AwaitFinished().stopped());
  EXPECT_THAT(LogOf(coordinator_.record(), 1, "stdout"), HasSubstr("the user said so"));
}

TEST_F(AgentRestartTest, PrepIsRepeatedAndItsLogGoesOn) {
  StartIt();
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "hang")));
  ASSERT_TRUE(WaitForReport(v1::Report::kLog));
  KillIt();
  StartIt();
  EXPECT_TRUE(coordinator_.WaitFor([](const CoordinatorRecord& record) {
    return LogOf(record, -1, "stderr") == "reading rows\nreading rows\n";
  }));
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::Minutes(10), false)));
  EXPECT_TRUE(AwaitFinished().stopped());
}

TEST_F(AgentRestartTest, StoppedAgentCannotKeepAZombieRunAlive) {
  coordinator_.Configure([](auto& b) { b.lease_ttl = absl::Seconds(4); });
  StartIt();
  Launch({"stubborn", "stubborn"});
  ASSERT_TRUE(WaitForPid(0));
  ASSERT_TRUE(WaitForPid(1));
  const pid_t trainers[] = {PidOf(coordinator_.record(), 0), PidOf(coordinator_.record(), 1)};
  ::kill(program_->pid(), SIGSTOP);
  const absl::Duration begin = RealClock::Get().Monotonic();
  for (const pid_t pid : trainers) EXPECT_TRUE(IsGone(pid));
  EXPECT_LT(RealClock::Get().Monotonic() - begin, absl::Seconds(4)) << "before the lease ends";
  ::kill(program_->pid(), SIGCONT);
  const v1::Failure failure = AwaitFinished().failure();
  EXPECT_EQ(failure.reason(), v1::NODE_LOST);
  EXPECT_THAT(failure.message(), HasSubstr("lease ran out on node n1"));
}

// The coordinator came back with a shorter lease, and the agent was stopped just then.
TEST_F(AgentRestartTest, ShimKillsAtAnEarlierDeadlineThanTheOneItWasStartedWith) {
  coordinator_.Configure([](auto& b) { b.lease_ttl = absl::Minutes(10); });
  StartIt();
  Launch({"stubborn"});
  ASSERT_TRUE(WaitForPid(0));
  const pid_t trainer = PidOf(coordinator_.record(), 0);
  coordinator_.Stop();
  coordinator_.Configure([](auto& b) { b.lease_ttl = absl::Seconds(4); });
  coordinator_.Start();
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.registrations.size() >= 2; }));
  MappedFile<LeaseFile> lease;
  ASSERT_EQ(lease.Open(LeasePath(config_.state_dir), false), 0);
  const auto left = [&] {
    return absl::Nanoseconds(lease->deadline.load()) - RealClock::Get().Monotonic();
  };
  ASSERT_TRUE(Eventually([&] { return left() < absl::Minutes(1); }));
  // Told when the attempt's thread has taken its turn; it does for the trainer's next line, too.
  ASSERT_TRUE(Eventually([&] { return TimerOf(Status()->shim_pid.load()) < absl::Minutes(1); }));
  ::kill(program_->pid(), SIGSTOP);
  EXPECT_TRUE(IsGone(trainer));
  ::kill(program_->pid(), SIGCONT);
  EXPECT_EQ(AwaitFinished().failure().reason(), v1::NODE_LOST);
}

TEST_F(AgentRestartTest, KilledShimTakesItsTrainersAlong) {
  StartIt();
  Launch({"stubborn", "grandchild_hang"});
  ASSERT_TRUE(WaitForPid(0));
  ASSERT_TRUE(WaitForPid(1));
  const pid_t grandchild = PidOf(coordinator_.record(), 1);
  ::kill(Status()->shim_pid.load(), SIGKILL);
  const v1::Failure failure = AwaitFinished().failure();
  EXPECT_EQ(failure.reason(), v1::EXIT_UNKNOWN);
  EXPECT_THAT(failure.message(), HasSubstr("the shim of the attempt on node n1 was killed"));
  EXPECT_TRUE(IsGone(PidOf(coordinator_.record(), 0)));
  EXPECT_TRUE(IsGone(grandchild)) << "swept by the agent";
}

TEST_F(AgentRestartTest, ShimAndAgentKilledTogetherLeaveNoOrphan) {
  StartIt();
  Launch({"stubborn", "grandchild_hang"});
  ASSERT_TRUE(WaitForPid(1));
  const pid_t grandchild = PidOf(coordinator_.record(), 1);
  const pid_t shim = Status()->shim_pid.load();
  ::kill(program_->pid(), SIGSTOP);
  ::kill(shim, SIGKILL);
  KillIt();
  StartIt();
  EXPECT_EQ(AwaitFinished().failure().reason(), v1::EXIT_UNKNOWN);
  EXPECT_TRUE(IsGone(grandchild));
}

TEST_F(AgentRestartTest, StoppedShimDoesNotHoldUpAKill) {
  StartIt();
  Launch({"stubborn"});
  ASSERT_TRUE(WaitForPid(0));
  const pid_t shim = Status()->shim_pid.load();
  ::kill(shim, SIGSTOP);
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::ZeroDuration(), false)));
  EXPECT_TRUE(AwaitFinished().stopped());
  EXPECT_TRUE(IsGone(PidOf(coordinator_.record(), 0)));
  EXPECT_TRUE(IsGone(shim));
}

TEST_F(AgentRestartTest, LowerAttemptsAreRefusedByTheNextAgentToo) {
  StartIt();
  Launch({"steps:1", "steps:1"}, 5);
  EXPECT_TRUE(AwaitFinished(5).succeeded());
  KillIt();
  StartIt();
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.registrations.size() >= 2; }));
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "ok", 4)));
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "ok", 5)));
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "ok", 6)));
  ASSERT_TRUE(WaitForReport(v1::Report::kPrepared, 6));
  EXPECT_TRUE(ReportsOf(coordinator_.record(), v1::Report::kPrepared, 4).empty());
  EXPECT_EQ(ReportsOf(coordinator_.record(), v1::Report::kPrepared, 5).size(), 1u);
}

TEST_F(AgentRestartTest, SecondShimOfAnAttemptIsRefused) {
  StartIt();
  Launch({"obey"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  SubprocessOptions options;
  options.argv = {SY_SHIM_PROGRAM, AttemptFolder(config_.state_dir, {JobId(kJob), 1}).value_or("")};
  auto second = Subprocess::Start(options);
  ASSERT_THAT(second, IsOk());
  ASSERT_TRUE(Eventually([&] { return (*second)->HasEnded(); }));
  EXPECT_EQ((*second)->Reap().code, kExitAlreadyJoined);
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::Minutes(10), false)));
  EXPECT_TRUE(AwaitFinished().stopped());
}

TEST_F(AgentTest, HangIsFoundByStepsThatDoNotCome) {
  config_.hang_floor = absl::Milliseconds(400);
  StartAgent();
  Launch({"spin", "hang"});
  const v1::Failure failure = AwaitFinished().failure();
  EXPECT_EQ(failure.reason(), v1::HANG);
  EXPECT_EQ(failure.rank(), 0);
  EXPECT_EQ(failure.step(), 5);
  EXPECT_THAT(failure.message(), HasSubstr("while training"));
  EXPECT_THAT(failure.message(), HasSubstr("rank 0 is in state R"));
}

TEST_F(AgentTest, ConsequencesAreMarkedAsCascade) {
  config_.gang_grace = absl::Seconds(20);
  StartAgent();
  Launch({"error_late:NAN_LOSS", "error_late:NCCL_ERROR"});
  const v1::Failure failure = AwaitFinished().failure();
  EXPECT_EQ(failure.reason(), v1::NAN_LOSS);
  EXPECT_EQ(failure.rank(), 0);
  ASSERT_EQ(failure.cascade_size(), 1);
  EXPECT_EQ(failure.cascade(0).rank(), 1);
  EXPECT_EQ(failure.cascade(0).reason(), v1::NCCL_ERROR);
}

TEST_F(AgentTest, DevicesInUseAreWithheldUntilTheyAreFree) {
  const std::string busy = folder_ + "/busy";
  ::setenv("SY_FAKE_NVML_BUSY", busy.c_str(), 1);
  config_.nvml_library = SY_FAKE_NVML_LIBRARY;
  config_.device_free_timeout = absl::Milliseconds(300);
  absl::StatusOr<std::vector<DeviceInfo>> gpus = FindGpus(config_.nvml_library);
  ASSERT_THAT(gpus, IsOk());
  auto agent = Agent::Start(config_, *gpus, metrics_, RealClock::Get());
  ASSERT_THAT(agent, IsOk());
  agent_ = *std::move(agent);
  Launch({"obey"}, 1, kJob, 1);
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  ASSERT_THAT(ReplaceFile(busy, "x"), IsOk());
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::Minutes(10), false)));
  EXPECT_TRUE(AwaitFinished().stopped());
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) {
    return r.registrations.back().devices_size() == 1;
  })) << "registered again without the device";
  EXPECT_EQ(coordinator_.record().registrations.back().devices(0).index(), 0);
  agent_.reset();
  const size_t registrations = coordinator_.record().registrations.size();
  agent = Agent::Start(config_, *gpus, metrics_, RealClock::Get());
  ASSERT_THAT(agent, IsOk());
  agent_ = *std::move(agent);
  ASSERT_TRUE(
      coordinator_.WaitFor([&](const auto& r) { return r.registrations.size() > registrations; }));
  EXPECT_EQ(coordinator_.record().registrations[registrations].devices_size(), 1)
      << "the agent's next life does not offer it either";
  ASSERT_EQ(::unlink(busy.c_str()), 0);
  EXPECT_TRUE(coordinator_.WaitFor(
      [](const auto& r) { return r.registrations.back().devices_size() == 2; }));
  ::unsetenv("SY_FAKE_NVML_BUSY");
}

}  // namespace
}  // namespace switchyard
