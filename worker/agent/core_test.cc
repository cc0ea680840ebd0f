#include "worker/agent/core.h"

#include <string>
#include <vector>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

constexpr char kJob[] = "projects/default/jobs/j1";
constexpr char kOther[] = "projects/default/jobs/j2";
constexpr absl::Duration kTtl = absl::Seconds(120);
constexpr absl::Duration kStart = absl::Seconds(1000);

AttemptId Id(int number, const std::string& job = kJob) { return {JobId(job), number}; }

class MemoryJournal final : public AgentJournal {
 public:
  absl::Status Append(const JournalRecord& record) override {
    if (full) return absl::ResourceExhaustedError("write journal: No space left on device");
    memory.Apply(record);
    return absl::OkStatus();
  }
  AgentMemory memory;
  bool full = false;
};

class AgentCoreTest : public testing::Test {
 protected:
  AgentCoreTest() { Restart(); }

  // A new process on the same journal.
  AgentActions Restart(const std::set<AttemptId>& finished = {},
                       absl::Duration deadline = absl::ZeroDuration()) {
    const AgentMemory memory = journal_.memory;
    AgentCoreOptions options;
    options.node = "n1";
    options.devices = {0, 1, 2, 3};
    options.deadline = deadline;
    core_ = std::make_unique<AgentCore>(options, journal_, memory, finished);
    return core_->Recover(kStart);
  }
  AgentActions Register(absl::Duration sent = kStart, int64_t epoch = 1) {
    v1::RegisterResponse response;
    response.set_coordinator_epoch(epoch);
    response.mutable_heartbeat_interval()->set_seconds(5);
    response.mutable_lease_ttl()->set_seconds(absl::ToInt64Seconds(kTtl));
    return core_->OnRegistered(response, sent, ReportNumbers{1, 1}, sent).value();
  }
  AgentActions Send(v1::SessionResponse response, absl::Duration now = kStart) {
    response.set_coordinator_epoch(1);
    return core_->OnSessionResponse(response, now).value();
  }
  AgentActions Assign(int number, std::vector<int> devices = {0, 1},
                      const std::string& job = kJob) {
    v1::SessionResponse order;
    order.mutable_assign()->set_job(job);
    order.mutable_assign()->set_attempt(number);
    for (const int device : devices) order.mutable_assign()->add_devices(device);
    return Send(order);
  }
  AgentActions Start(int number, absl::Duration now = kStart) {
    v1::SessionResponse order;
    order.mutable_start()->set_job(kJob);
    order.mutable_start()->set_attempt(number);
    return Send(order, now);
  }
  AgentActions Stop(int number, int grace_seconds, absl::Duration now = kStart) {
    v1::SessionResponse order;
    order.mutable_stop()->set_job(kJob);
    order.mutable_stop()->set_attempt(number);
    order.mutable_stop()->mutable_grace_period()->set_seconds(grace_seconds);
    return Send(order, now);
  }
  AgentActions Ack(int64_t heartbeat, absl::Duration now) {
    v1::SessionResponse response;
    response.mutable_heartbeat_ack()->set_heartbeat(heartbeat);
    return Send(response, now);
  }
  void Run(int number) {
    Assign(number);
    core_->OnPrepared(Id(number), {}, kStart);
    Start(number);
  }

  MemoryJournal journal_;
  std::unique_ptr<AgentCore> core_;
};

// "LaunchPrep 1", "SendReport 1 finished NODE_LOST", ...
std::string Describe(const AgentAction& action) {
  struct Visitor {
    std::string operator()(const LaunchPrep& a) { return "LaunchPrep " + Number(a.id); }
    std::string operator()(const LaunchGang& a) { return "LaunchGang " + Number(a.id); }
    std::string operator()(const AdoptGang& a) { return "AdoptGang " + Number(a.id); }
    std::string operator()(const StopAttempt& a) {
      return "Stop " + Number(a.id) + (a.request.kill ? " kill" : "");
    }
    std::string operator()(const SendReport& a) {
      if (a.report.has_prepared()) return "Report " + Number(a.id) + " prepared";
      const v1::Finished& finished = a.report.finished();
      return "Report " + Number(a.id) + " " +
             (finished.stopped()     ? "stopped"
              : finished.succeeded() ? "succeeded"
                                     : v1::FailureReason_Name(finished.failure().reason()));
    }
    std::string operator()(const ForgetAttempt& a) { return "Forget " + Number(a.id); }
    std::string operator()(const MoveDeadline& a) {
      return "Deadline " + std::to_string(absl::ToInt64Seconds(a.deadline));
    }
    std::string operator()(const EndSession&) { return "EndSession"; }
    std::string operator()(const RenewIncarnation&) { return "RenewIncarnation"; }
    static std::string Number(const AttemptId& id) { return std::to_string(id.number); }
  };
  return std::visit(Visitor{}, action);
}

std::vector<std::string> Words(const AgentActions& actions) {
  std::vector<std::string> words;
  for (const AgentAction& action : actions) words.push_back(Describe(action));
  return words;
}

v1::Finished Succeeded() {
  v1::Finished finished;
  finished.set_succeeded(true);
  return finished;
}

TEST(LeaseTest, KillingBeginsSomeSecondsBeforeTheEnd) {
  EXPECT_EQ(KillBudget(absl::Seconds(120)), absl::Seconds(15));
  EXPECT_EQ(KillBudget(absl::Seconds(4)), absl::Seconds(1));
}

TEST_F(AgentCoreTest, CarriesAnAttemptFromOrderToEnd) {
  EXPECT_THAT(Words(Register()), ElementsAre("Deadline 1112"));
  EXPECT_THAT(Words(Assign(1)), ElementsAre("LaunchPrep 1"));
  EXPECT_THAT(Words(core_->OnPrepared(Id(1), {}, kStart)), ElementsAre("Report 1 prepared"));
  EXPECT_THAT(Words(Start(1)), ElementsAre("LaunchGang 1"));
  EXPECT_THAT(core_->Live(), ElementsAre(Id(1)));
  EXPECT_THAT(Words(core_->OnEnded(Id(1), Succeeded())), ElementsAre("Report 1 succeeded"));
  EXPECT_THAT(core_->Live(), IsEmpty());
  EXPECT_THAT(core_->AnsweredFor(), ElementsAre(Id(1)));
  EXPECT_THAT(Words(core_->OnReportsDrained(Id(1))), ElementsAre("Forget 1"));
  EXPECT_THAT(core_->AnsweredFor(), IsEmpty());
}

TEST_F(AgentCoreTest, RepeatedOrdersHaveNoEffect) {
  Register();
  Run(1);
  EXPECT_THAT(Assign(1), IsEmpty());
  EXPECT_THAT(Start(1), IsEmpty());
  EXPECT_THAT(Words(Stop(1, 30)), ElementsAre("Stop 1"));
  EXPECT_THAT(Stop(1, 30), IsEmpty());
  EXPECT_THAT(Words(Stop(1, 5)), ElementsAre("Stop 1")) << "a shorter grace period counts";
}

TEST_F(AgentCoreTest, LowerAttemptsAreRefusedAlsoAfterARestart) {
  Register();
  Run(3);
  core_->OnEnded(Id(3), Succeeded());
  core_->OnReportsDrained(Id(3));
  Restart();
  Register();
  EXPECT_THAT(Assign(2), IsEmpty());
  EXPECT_THAT(Start(2), IsEmpty());
  EXPECT_THAT(Stop(2, 0), IsEmpty());
  EXPECT_THAT(Words(Assign(3)), ElementsAre("Report 3 EXIT_UNKNOWN"));
  EXPECT_THAT(Words(Assign(4)), ElementsAre("LaunchPrep 4"));
}

// Otherwise the job would stay STARTING or STOPPING, and hold its devices, for ever.
TEST_F(AgentCoreTest, AnswerThatDiedWithTheAgentIsGivenAgain) {
  Register();
  Run(1);
  EXPECT_THAT(Words(Assign(1, {1, 2}, kOther)), ElementsAre("Report 1 INTERNAL"));
  EXPECT_THAT(Words(Stop(2, 0)), ElementsAre("Report 2 stopped"));
  Restart();  // the refusals were in the journal, and not yet in the spool
  Register();
  EXPECT_THAT(Words(Assign(1, {1, 2}, kOther)), ElementsAre("Report 1 EXIT_UNKNOWN"));
  EXPECT_THAT(Words(Stop(2, 0)), ElementsAre("Report 2 stopped"));
  EXPECT_THAT(Words(Start(2)), ElementsAre("Report 2 EXIT_UNKNOWN"));
  EXPECT_THAT(Assign(1), IsEmpty()) << "overtaken by the second";
}

TEST_F(AgentCoreTest, OrdersForAttemptsItNeverHadAreAnsweredAndFenced) {
  Register();
  EXPECT_THAT(Words(Start(4)), ElementsAre("Report 4 EXIT_UNKNOWN"));
  EXPECT_THAT(Words(Stop(5, 0)), ElementsAre("Report 5 stopped"));
  EXPECT_THAT(Words(Assign(5)), ElementsAre("Report 5 EXIT_UNKNOWN"));
}

TEST_F(AgentCoreTest, AnAttemptWaitsForTheOlderOneOfItsJob) {
  Register();
  Run(1);
  EXPECT_THAT(Words(Assign(2, {2, 3})), ElementsAre("Stop 1 kill"));
  EXPECT_EQ(core_->Find(Id(2))->phase, AgentCore::Phase::kWaiting);
  EXPECT_THAT(Words(core_->OnEnded(Id(1), {})),
              ElementsAre("Report 1 FAILURE_REASON_UNSPECIFIED", "LaunchPrep 2"));
}

TEST_F(AgentCoreTest, WaitingForAnOlderAttemptHasAnEnd) {
  Register();
  Run(1);
  Assign(2);
  EXPECT_EQ(core_->NextTime(), kStart + absl::Seconds(10));
  EXPECT_THAT(Words(core_->OnTime(kStart + absl::Seconds(10))), ElementsAre("Report 2 INTERNAL"));
}

TEST_F(AgentCoreTest, HeldDevicesAreRefused) {
  Register();
  Run(1);
  const AgentActions actions = Assign(1, {1, 2}, kOther);
  ASSERT_THAT(Words(actions), ElementsAre("Report 1 INTERNAL"));
  EXPECT_THAT(std::get<SendReport>(actions[0]).report.finished().failure().message(),
              HasSubstr("device 1 is held by attempt 1 of projects/default/jobs/j1"));
  EXPECT_THAT(Words(Assign(2, {2, 3}, kOther)), ElementsAre("LaunchPrep 2"));
}

TEST_F(AgentCoreTest, WithheldDevicesAreNeitherOfferedNorGiven) {
  Register();
  EXPECT_THAT(Words(core_->OnDevicesWithheld({1})), ElementsAre("EndSession"));
  EXPECT_THAT(core_->OnDevicesWithheld({1}), IsEmpty());
  EXPECT_THAT(core_->OfferedDevices(), ElementsAre(0, 2, 3));
  EXPECT_THAT(Words(Assign(1, {0, 1})), ElementsAre("Report 1 INTERNAL"));
  EXPECT_THAT(Words(core_->OnDevicesWithheld({})), ElementsAre("EndSession"));
  EXPECT_THAT(Words(Assign(2, {0, 1})), ElementsAre("LaunchPrep 2"));
}

TEST_F(AgentCoreTest, LeaseCountsFromTheSendTimeOfTheAcknowledgedHeartbeat) {
  Register();
  Run(1);
  EXPECT_EQ(core_->NextHeartbeat(kStart + absl::Seconds(50)), 1);
  EXPECT_EQ(core_->NextHeartbeat(kStart + absl::Seconds(90)), 2);
  // The first is acknowledged late: what counts is when it was sent.
  EXPECT_THAT(Words(Ack(1, kStart + absl::Seconds(100))), ElementsAre("Deadline 1162"));
  const absl::Duration kill = kStart + absl::Seconds(50) + kTtl - absl::Seconds(15);
  EXPECT_THAT(Words(core_->OnTime(kill - absl::Nanoseconds(1))), ElementsAre("EndSession"));
  const AgentActions actions = core_->OnTime(kill);
  ASSERT_THAT(Words(actions), ElementsAre("Stop 1 kill"));
  EXPECT_EQ(std::get<StopAttempt>(actions[0]).request.cause, StopCause::kLease);
  EXPECT_THAT(core_->OnTime(kill + absl::Seconds(1)), IsEmpty()) << "once is enough";
  EXPECT_THAT(
      Words(core_->OnEnded(Id(1), FinishedByStop(std::get<StopAttempt>(actions[0]).request, "n1"))),
      ElementsAre("Report 1 NODE_LOST"));
}

TEST_F(AgentCoreTest, LeaseOfTheLifeBeforeStillCounts) {
  Register();
  Run(1);
  const absl::Duration deadline = kStart + absl::Seconds(7);
  EXPECT_THAT(Words(Restart({}, deadline)), ElementsAre("AdoptGang 1"));
  EXPECT_EQ(core_->NextTime(), deadline);
  EXPECT_THAT(Words(core_->OnTime(deadline)), ElementsAre("Stop 1 kill"));
}

// Found by the simulation (seed 200443): a stopped agent read the order that had waited for it
// before its timer rang, and started trainers that the coordinator had given up.
TEST_F(AgentCoreTest, OrdersThatWaitedPastTheLeaseStartNothing) {
  Register();
  const absl::Duration late = kStart + kTtl;
  Assign(1);
  Assign(1, {2}, kOther);
  core_->OnPrepared(Id(1), {}, kStart);
  EXPECT_THAT(Words(Start(1, late)), ElementsAre("Stop 1 kill", "Stop 1 kill"));
  EXPECT_THAT(Words(Start(1, late)), IsEmpty()) << "it is being killed";
  EXPECT_EQ(core_->Find(Id(1))->phase, AgentCore::Phase::kPrepared);
}

TEST_F(AgentCoreTest, PreparedPastTheLeaseIsNotLaunched) {
  Register();
  Run(1);
  Restart({}, kStart + absl::Minutes(1));
  Register();
  core_->OnNothingToAdopt(Id(1));
  EXPECT_THAT(Words(core_->OnPrepared(Id(1), {}, kStart + kTtl)), ElementsAre("Stop 1 kill"));
}

// The answer took longer than the lease that it brings.
TEST_F(AgentCoreTest, RegistrationThatIsAnsweredPastItsLeaseLaunchesNothing) {
  Register();
  Run(1);
  Restart();
  core_->OnNothingToAdopt(Id(1));
  core_->OnPrepared(Id(1), {}, kStart);
  v1::RegisterResponse response;
  response.set_coordinator_epoch(1);
  EXPECT_THAT(
      Words(core_->OnRegistered(response, kStart, ReportNumbers{1, 1}, kStart + kTtl).value()),
      ElementsAre(StartsWith("Deadline"), "Stop 1 kill"));
}

TEST_F(AgentCoreTest, WhatIsBeingStoppedIsNotStarted) {
  Register();
  Assign(1);
  core_->OnPrepared(Id(1), {}, kStart);
  Stop(1, 30);
  EXPECT_THAT(Start(1), IsEmpty());
  EXPECT_EQ(core_->Find(Id(1))->phase, AgentCore::Phase::kPrepared);
}

TEST_F(AgentCoreTest, TakesUpWhatALifeBeforeLeft) {
  Register();
  Run(1);
  Stop(1, 30);
  Assign(1, {2}, kOther);
  // 10 s of the grace period are over: it is not given anew.
  journal_.memory.attempts.at(Id(1)).stop_time = kStart - absl::Seconds(10);
  const AgentActions actions = Restart();
  ASSERT_THAT(Words(actions), ElementsAre("AdoptGang 1", "Stop 1", "LaunchPrep 1"));
  EXPECT_EQ(std::get<StopAttempt>(actions[1]).request.grace, absl::Seconds(20));
  EXPECT_THAT(core_->AnsweredFor(), ElementsAre(Id(1), Id(1, kOther)));
}

TEST_F(AgentCoreTest, StoppedBeforeItsStartIsNotPreparedAgain) {
  Register();
  Assign(1);
  Stop(1, 30);
  EXPECT_THAT(Words(Restart()), ElementsAre("Report 1 stopped"));
}

TEST_F(AgentCoreTest, GangThatWasNeverLaunchedIsPreparedAndLaunched) {
  Register();
  Run(1);
  EXPECT_THAT(Words(Restart({}, kStart + absl::Minutes(1))), ElementsAre("AdoptGang 1"));
  Register();
  EXPECT_THAT(Words(core_->OnNothingToAdopt(Id(1))), ElementsAre("LaunchPrep 1"));
  EXPECT_THAT(Words(core_->OnPrepared(Id(1), {}, kStart)), ElementsAre("LaunchGang 1"));
}

// Its failure was acknowledged, and the agent killed before it had forgotten the order.
TEST_F(AgentCoreTest, GangThatWasGivenUpIsNotLaunchedByTheNextLife) {
  Register();
  Run(1);
  core_->OnEnded(Id(1), {});
  EXPECT_THAT(Words(Restart({}, kStart + absl::Minutes(1))), ElementsAre("AdoptGang 1"));
  core_->OnNothingToAdopt(Id(1));
  EXPECT_THAT(core_->OnPrepared(Id(1), {}, kStart), IsEmpty())
      << "the lease is good, the order is not";
  v1::RegisterResponse response;
  response.set_coordinator_epoch(1);
  response.add_stale_attempts()->set_job(kJob);
  response.mutable_stale_attempts(0)->set_attempt(1);
  EXPECT_THAT(Words(core_->OnRegistered(response, kStart, ReportNumbers{1, 1}, kStart).value()),
              ElementsAre(StartsWith("Deadline"), "Stop 1 kill"));
}

// Found by the simulation (seed 20): after a boot, trainers were started on an order of before it,
// without a lease and so without an end, while the coordinator had given the attempt up.
TEST_F(AgentCoreTest, NothingIsLaunchedWithoutALease) {
  Register();
  Run(1);
  EXPECT_THAT(Words(Restart()), ElementsAre("AdoptGang 1"));
  EXPECT_THAT(Words(core_->OnNothingToAdopt(Id(1))), ElementsAre("LaunchPrep 1"));
  EXPECT_THAT(core_->OnPrepared(Id(1), {}, kStart), IsEmpty());
  EXPECT_THAT(Words(Register()), ElementsAre(StartsWith("Deadline"), "LaunchGang 1"));
  EXPECT_THAT(Words(Register()), ElementsAre(StartsWith("Deadline"))) << "once";
}

TEST_F(AgentCoreTest, EndThatIsInTheSpoolIsNotReportedTwice) {
  Register();
  Run(1);
  core_->OnEnded(Id(1), Succeeded());
  EXPECT_THAT(Restart({Id(1)}), IsEmpty());
  EXPECT_THAT(core_->AnsweredFor(), ElementsAre(Id(1)));
  EXPECT_THAT(Words(core_->OnReportsDrained(Id(1))), ElementsAre("Forget 1"));
  EXPECT_THAT(journal_.memory.attempts, IsEmpty());
}

// Found by the simulation (seed 33): what was left of the attempt went, its order stayed in the
// journal, and the next life of the agent ran the gang a second time.
TEST_F(AgentCoreTest, AttemptIsForgottenOnlyTogetherWithItsOrder) {
  Register();
  Run(1);
  core_->OnEnded(Id(1), Succeeded());
  journal_.full = true;
  EXPECT_THAT(core_->OnReportsDrained(Id(1)), IsEmpty());
  EXPECT_THAT(core_->AnsweredFor(), ElementsAre(Id(1)));
  journal_.full = false;
  EXPECT_THAT(Words(core_->OnReportsDrained(Id(1))), ElementsAre("Forget 1"));
}

TEST_F(AgentCoreTest, OlderEpochIsRefused) {
  Register(kStart, 5);
  v1::SessionResponse order;
  order.set_coordinator_epoch(4);
  order.mutable_assign()->set_job(kJob);
  order.mutable_assign()->set_attempt(1);
  EXPECT_THAT(core_->OnSessionResponse(order, kStart), StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT(core_->attempts(), IsEmpty());
}

TEST_F(AgentCoreTest, CoordinatorThatLostItsMemoryGetsANewIncarnation) {
  v1::RegisterResponse response;
  response.set_coordinator_epoch(1);
  response.set_acknowledged_report(10);
  const auto register_with = [&](int64_t first, int64_t next) {
    return Words(core_->OnRegistered(response, kStart, ReportNumbers{first, next}, kStart).value());
  };
  EXPECT_THAT(register_with(12, 15), ElementsAre("RenewIncarnation")) << "11 is gone";
  EXPECT_THAT(register_with(8, 10), ElementsAre("RenewIncarnation")) << "10 was never given";
  EXPECT_THAT(register_with(11, 11), ElementsAre("Deadline 1112"));
  EXPECT_THAT(register_with(5, 20), ElementsAre("Deadline 1112"));
}

TEST_F(AgentCoreTest, OrderThatCannotBeRememberedIsRefused) {
  Register();
  journal_.full = true;
  EXPECT_THAT(Words(Assign(1)), ElementsAre("Report 1 DISK_FULL"));
  journal_.full = false;
  Assign(2);
  core_->OnPrepared(Id(2), {}, kStart);
  journal_.full = true;
  EXPECT_THAT(Words(Start(2)), ElementsAre("Stop 2 kill", "Report 2 DISK_FULL"));
}

TEST_F(AgentCoreTest, ShutdownStopsAllAndRefusesMore) {
  Register();
  Run(1);
  EXPECT_THAT(Words(core_->OnShutdown(absl::Seconds(1))), ElementsAre("Stop 1"));
  EXPECT_THAT(Words(Assign(1, {2}, kOther)), ElementsAre("Report 1 DRAINED"));
}

TEST_F(AgentCoreTest, StaleAttemptsAreKilledOnce) {
  Register();
  Run(1);
  EXPECT_THAT(Words(core_->OnStale({Id(1), Id(7)})), ElementsAre("Stop 1 kill"));
  EXPECT_THAT(core_->OnStale({Id(1)}), IsEmpty());
}

}  // namespace
}  // namespace switchyard
