// Orders of users, operators and the scheduler to what is stored: cancel, pause, resume, preempt,
// drain, deadlines; and conditions.
#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/store_testing.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class StoreOrdersTest : public StoreTest {
 protected:
  // A job whose checkpoints can be resumed from, running on `nodes`.
  AttemptId RunResumable(const std::string& name, const std::vector<std::string>& nodes) {
    JobRecord job = MakeJob(name, static_cast<int>(2 * nodes.size()));
    job.needs.resumable = true;
    EXPECT_THAT(store_->CreateJob(job, {}), IsOk());
    const AttemptId attempt = Place(job, nodes);
    for (const std::string& node : nodes) Run(node, attempt);
    EXPECT_EQ(store_->GetJob(job.id)->state, JobState::kRunning);
    return attempt;
  }
  JobRecord Job(const AttemptId& attempt) { return *store_->GetJob(attempt.job); }
  void Stopped(const std::string& node, const AttemptId& attempt) {
    Report(node, {Say(node, attempt, FinishedReport{false, true, absl::nullopt})});
  }
  StopOrder StopOf(const std::string& node) {
    const std::vector<OrderRecord> orders = Orders(node);
    EXPECT_THAT(orders, SizeIs(1));
    return absl::get<StopOrder>(orders.at(0).what);
  }
  std::vector<std::string> Events(const JobId& job, const std::string& kind) {
    std::vector<std::string> out;
    const std::vector<EventRecord> events = *store_->ReadEvents(job, 0, 1000);
    for (const EventRecord& e : events) {
      if (e.kind == kind) out.push_back(e.message);
    }
    return out;
  }
};

TEST_F(StoreOrdersTest, CancelIsRightInEveryState) {
  Register("a");
  const JobRecord queued = Create("queued");
  EXPECT_EQ(store_->CancelJob(queued.id, absl::Seconds(1), {})->state, JobState::kCancelled);
  EXPECT_EQ(store_->CancelJob(queued.id, absl::Seconds(1), {})->state, JobState::kCancelled);

  const JobRecord reserved = Create("reserved");
  Place(reserved, {"a"});
  EXPECT_EQ(store_->CancelJob(reserved.id, absl::Seconds(1), {})->state, JobState::kCancelled)
      << "nothing was sent, so nothing has to stop";
  EXPECT_EQ(store_->ListAttempts(reserved.id)->at(0).state, AttemptState::kReleased);

  const JobRecord running = Create("running");
  const AttemptId attempt = Place(running, {"a"});
  Run("a", attempt);
  EXPECT_EQ(store_->CancelJob(running.id, absl::Seconds(7), {})->state, JobState::kStopping);
  const StopOrder stop = absl::get<StopOrder>(Orders("a")[0].what);
  EXPECT_EQ(stop.grace, absl::Seconds(7));
  EXPECT_TRUE(stop.checkpoint);
  EXPECT_EQ(store_->CancelJob(running.id, absl::Seconds(1), {})->state, JobState::kStopping);
  Report("a", {Say("a", attempt, FinishedReport{false, true, absl::nullopt})});
  EXPECT_EQ(Get(running).state, JobState::kCancelled);

  const JobRecord failed = Create("failed");
  const AttemptId bad = Place(failed, {"a"});
  Orders("a");
  Report("a", {Say("a", bad, FinishedReport{false, false, FailureRecord{}})});
  EXPECT_THAT(store_->CancelJob(failed.id, absl::Seconds(1), {}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("FAILED")));
}

TEST_F(StoreOrdersTest, TheSameRequestTwiceMakesOneJob) {
  const RequestKey key{"p", "CreateJob", "r1", "payload"};
  const auto first = store_->CreateJob(MakeJob("one"), key);
  JobRecord again = MakeJob("two");
  EXPECT_EQ(store_->CreateJob(again, key)->id, first->id);
  EXPECT_THAT(store_->CreateJob(again, {"p", "CreateJob", "r1", "other"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("r1")));
  EXPECT_THAT(store_->CreateJob(MakeJob("one"), {}), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_F(StoreOrdersTest, ASecondCancelShortensTheGracePeriod) {
  Register("a");
  const AttemptId attempt = RunResumable("j", {"a"});
  ASSERT_THAT(store_->CancelJob(attempt.job, absl::Seconds(30), {}), IsOk());
  EXPECT_EQ(StopOf("a").grace, absl::Seconds(30));
  ASSERT_THAT(store_->CancelJob(attempt.job, absl::ZeroDuration(), {}), IsOk());
  EXPECT_EQ(StopOf("a").grace, absl::ZeroDuration());
  ASSERT_THAT(store_->CancelJob(attempt.job, absl::Seconds(60), {}), IsOk());
  EXPECT_EQ(StopOf("a").grace, absl::ZeroDuration()) << "never longer";
}

TEST_F(StoreOrdersTest, PausesWithACheckpointAndResumes) {
  Register("a");
  const AttemptId attempt = RunResumable("j", {"a"});
  const auto pausing = store_->PauseJob(attempt.job, absl::Seconds(9), {});
  ASSERT_THAT(pausing, IsOk());
  EXPECT_EQ(pausing->state, JobState::kStopping);
  EXPECT_EQ(pausing->stop_reason, StopReason::kUser);
  const StopOrder stop = StopOf("a");
  EXPECT_TRUE(stop.checkpoint);
  EXPECT_EQ(stop.grace, absl::Seconds(9));
  Stopped("a", attempt);
  EXPECT_EQ(Job(attempt).state, JobState::kPaused);
  EXPECT_EQ(Job(attempt).retry, RetryState{}) << "a pause costs nothing";
  EXPECT_EQ(store_->ListAttempts(attempt.job)->at(0).stop_reason, StopReason::kUser);
  EXPECT_EQ(store_->PauseJob(attempt.job, absl::Seconds(9), {})->state, JobState::kPaused);
  EXPECT_THAT(*store_->Reservations(), IsEmpty());

  EXPECT_EQ(store_->ResumeJob(attempt.job, {})->state, JobState::kQueued);
  EXPECT_EQ(store_->ResumeJob(attempt.job, {})->state, JobState::kQueued);
  EXPECT_EQ(store_->PauseJob(attempt.job, absl::Seconds(9), {})->state, JobState::kPaused);
  EXPECT_EQ(store_->CancelJob(attempt.job, absl::Seconds(1), {})->state, JobState::kCancelled);
  EXPECT_THAT(store_->PauseJob(attempt.job, absl::Seconds(9), {}),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(store_->ResumeJob(attempt.job, {}), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(StoreOrdersTest, LaterOrdersChangeWhereAStoppingJobGoes) {
  Register("a");
  const AttemptId resumed = RunResumable("resumed", {"a"});
  ASSERT_THAT(store_->PauseJob(resumed.job, absl::Seconds(9), {}), IsOk());
  ASSERT_THAT(store_->ResumeJob(resumed.job, {}), IsOk());
  Stopped("a", resumed);
  EXPECT_EQ(Job(resumed).state, JobState::kQueued);

  const AttemptId cancelled = RunResumable("cancelled", {"a"});
  ASSERT_THAT(store_->PauseJob(cancelled.job, absl::Seconds(9), {}), IsOk());
  ASSERT_THAT(store_->CancelJob(cancelled.job, absl::Seconds(9), {}), IsOk());
  ASSERT_THAT(store_->PauseJob(cancelled.job, absl::Seconds(9), {}), IsOk());
  Stopped("a", cancelled);
  EXPECT_EQ(Job(cancelled).state, JobState::kCancelled) << "an order that ends it is stronger";
}

TEST_F(StoreOrdersTest, AJobThatWouldStartOverIsNotPaused) {
  Register("a");
  const JobRecord job = Create("j");
  Run("a", Place(job, {"a"}));
  EXPECT_THAT(store_->PauseJob(job.id, absl::Seconds(9), {}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("save_optimizer")));
  EXPECT_EQ(Get(job).state, JobState::kRunning);
}

TEST_F(StoreOrdersTest, APreemptedGangGoesBackToTheQueueAtNoCost) {
  Register("a");
  Register("b");
  const AttemptId attempt = RunResumable("low", {"a", "b"});
  Plan plan;
  plan.preemptions = {{attempt.job, Job(attempt).version, JobId("high")}};
  ASSERT_THAT(store_->Apply(plan), IsOk());
  EXPECT_EQ(Job(attempt).state, JobState::kStopping);
  EXPECT_EQ(Job(attempt).stop_reason, StopReason::kPreempted);
  EXPECT_TRUE(StopOf("a").checkpoint);
  EXPECT_THAT(StopOf("b").reason, HasSubstr("high"));
  // A rank that fails on the way out does not change that.
  FailureRecord failure;
  failure.reason = FailureReason::kNcclError;
  Report("a", {Say("a", attempt, FinishedReport{false, false, failure})});
  EXPECT_EQ(Job(attempt).state, JobState::kStopping) << "the whole gang first";
  Stopped("b", attempt);
  EXPECT_EQ(Job(attempt).state, JobState::kQueued);
  EXPECT_EQ(Job(attempt).retry, RetryState{});
  EXPECT_EQ(Job(attempt).backoff, absl::ZeroDuration());
  EXPECT_EQ(store_->ListAttempts(attempt.job)->at(0).state, AttemptState::kStopped);
}

TEST_F(StoreOrdersTest, OfTheVictimsOfAJobAllStopOrNone) {
  Register("a");
  Register("b");
  const AttemptId one = RunResumable("one", {"a"});
  const AttemptId two = RunResumable("two", {"b"});
  Plan plan;
  plan.preemptions = {{one.job, Job(one).version, JobId("high")},
                      {two.job, Job(two).version + 1, JobId("high")}};
  ASSERT_THAT(store_->Apply(plan), IsOk());
  EXPECT_EQ(Job(one).state, JobState::kRunning);
  EXPECT_EQ(Job(two).state, JobState::kRunning);
}

TEST_F(StoreOrdersTest, DrainingMovesGangsAwayAndKeepsOthersOut) {
  Register("a");
  Register("b");
  const AttemptId attempt = RunResumable("j", {"a", "b"});
  ASSERT_THAT(store_->SetNodeScheduling(NodeId("a"), NodeScheduling::kDraining, absl::Seconds(5),
                                        "me", "fan noise"),
              IsOk());
  EXPECT_EQ(Job(attempt).state, JobState::kStopping);
  EXPECT_EQ(Job(attempt).stop_reason, StopReason::kDrain);
  Stopped("a", attempt);
  Stopped("b", attempt);
  EXPECT_EQ(Job(attempt).state, JobState::kQueued);
  // A plan made before the drain.
  const GangPlacement late{attempt.job, Job(attempt).version, {{NodeId("a"), {0}}}, ""};
  ASSERT_THAT(store_->Apply(Plan{{late}, {}}), IsOk());
  EXPECT_EQ(Job(attempt).state, JobState::kQueued);
  // A new life of the agent does not end the drain; the operator does.
  ASSERT_THAT(store_->RegisterNode(MakeNode("a", "next"), {}), IsOk());
  EXPECT_EQ(store_->GetNode(NodeId("a"))->scheduling, NodeScheduling::kDraining);
  EXPECT_EQ(store_->GetNode(NodeId("a"))->scheduling_message, "fan noise");
  ASSERT_THAT(store_->SetNodeScheduling(NodeId("a"), NodeScheduling::kActive, {}, "me", ""),
              IsOk());
  ASSERT_THAT(store_->Apply(Plan{{late}, {}}), IsOk());
  EXPECT_EQ(Job(attempt).state, JobState::kStarting);
  const auto audit = store_->ListAudit(0, 10);
  ASSERT_THAT(audit, IsOk());
  ASSERT_THAT(*audit, SizeIs(2));
  EXPECT_EQ(audit->at(1).action, "DrainNode");
  EXPECT_EQ(audit->at(1).actor, "me");
  EXPECT_THAT(store_->SetNodeScheduling(NodeId("no"), NodeScheduling::kActive, {}, "me", ""),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(StoreOrdersTest, TheLeaseThatAnAgentMayBelieveInShrinksOnlyWithItsWord) {
  const auto ttl = [&] { return store_->GetNode(NodeId("a"))->lease_ttl; };
  NodeRecord node = MakeNode("a", "i-a");
  node.lease_ttl = absl::Minutes(10);
  ASSERT_THAT(store_->RegisterNode(node, {}), IsOk());
  node.lease_ttl = absl::Minutes(1);
  ASSERT_THAT(store_->RegisterNode(node, {}), IsOk());
  EXPECT_EQ(ttl(), absl::Minutes(10)) << "the answer may have been lost";
  ASSERT_THAT(store_->SettleLease(node.id, Incarnation("another"), absl::Minutes(1)), IsOk());
  EXPECT_EQ(ttl(), absl::Minutes(10));
  ASSERT_THAT(store_->SettleLease(node.id, node.incarnation, absl::Minutes(1)), IsOk());
  EXPECT_EQ(ttl(), absl::Minutes(1));
  node.lease_ttl = absl::Seconds(30);
  node.boot_id = "next boot";
  node.incarnation = Incarnation("i-b");
  ASSERT_THAT(store_->RegisterNode(node, {}), IsOk());
  EXPECT_EQ(ttl(), absl::Seconds(30)) << "nothing of before the boot is left";
}

TEST_F(StoreOrdersTest, ANodeConfirmedDeadClosesItsAttemptsAtOnce) {
  Register("a");
  const AttemptId attempt = RunResumable("j", {"a"});
  ASSERT_THAT(store_->ConfirmNodeDead(NodeId("a"), "me", "power is off"), IsOk());
  EXPECT_EQ(store_->ListAttempts(attempt.job)->at(0).state, AttemptState::kLost);
  EXPECT_THAT(store_->ListAttempts(attempt.job)->at(0).failure->message,
              HasSubstr("confirmed dead"));
  EXPECT_THAT(store_->CheckFence(NodeId("a"), Incarnation("i-a"), attempt),
              StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT(Events(attempt.job, "WARNING"), ElementsAre(HasSubstr("LOG_TAIL_INCOMPLETE")));
  EXPECT_EQ(store_->ListAudit(0, 1)->at(0).action, "ConfirmNodeDead");
}

TEST_F(StoreOrdersTest, AJobThatHasRunTooLongFailsWithItsDeadline) {
  Register("a");
  JobRecord job = MakeJob("j", 2, 5);
  job.needs.max_run_time = absl::Minutes(2);
  ASSERT_THAT(store_->CreateJob(job, {}), IsOk());
  const AttemptId attempt = Place(job, {"a"});
  Run("a", attempt);
  ASSERT_THAT(store_->AddRunTime({{attempt, absl::Seconds(119)}}), IsOk());
  EXPECT_EQ(Get(job).state, JobState::kRunning);
  ASSERT_THAT(store_->AddRunTime({{attempt, absl::Seconds(2)}}), IsOk());
  EXPECT_EQ(Get(job).state, JobState::kStopping);
  Stopped("a", attempt);
  EXPECT_EQ(Get(job).state, JobState::kFailed);
  EXPECT_EQ(Get(job).failure->reason, FailureReason::kDeadline);
  EXPECT_THAT(Get(job).failure->message, HasSubstr("2m"));
}

TEST_F(StoreOrdersTest, ConditionsAreSetOnceAndEndWithTheAttempt) {
  Register("a");
  const AttemptId attempt = RunResumable("j", {"a"});
  const ConditionChange set{attempt.job, ConditionType::kUnreachable, std::string("a is silent")};
  ASSERT_THAT(store_->SetConditions({set}), IsOk());
  ASSERT_THAT(store_->SetConditions({set}), IsOk());
  ASSERT_THAT(*store_->ListConditions(attempt.job), SizeIs(1));
  EXPECT_THAT(Events(attempt.job, "CONDITION"), ElementsAre("UNREACHABLE: a is silent"));
  ASSERT_THAT(store_->SetConditions({{attempt.job, ConditionType::kUnreachable, absl::nullopt},
                                     {attempt.job, ConditionType::kStalled, absl::nullopt},
                                     {attempt.job, ConditionType::kDraining, std::string("a")}}),
              IsOk());
  EXPECT_THAT(Events(attempt.job, "CONDITION"),
              ElementsAre("UNREACHABLE: a is silent", "UNREACHABLE is over", "DRAINING: a"));
  ASSERT_THAT(store_->PauseJob(attempt.job, absl::Seconds(1), {}), IsOk());
  Stopped("a", attempt);
  EXPECT_THAT(*store_->ListConditions(attempt.job), IsEmpty());
  ASSERT_THAT(store_->SetConditions({set}), IsOk());
  EXPECT_THAT(*store_->ListConditions(attempt.job), IsEmpty()) << "it is not live any more";
}

TEST_F(StoreOrdersTest, NoGangIsPlacedBesideAPublicationOrFromAnOldChoice) {
  Register("a");
  const AttemptId attempt = RunResumable("j", {"a"});
  CheckpointRecord c;
  c.job = attempt.job;
  c.attempt = attempt.number;
  c.step = 10;
  c.path = "/artifacts/step-10";
  const auto row = store_->BeginCheckpoint(NodeId("a"), Incarnation("i-a"), c);
  ASSERT_THAT(row, IsOk());
  ASSERT_THAT(store_->PauseJob(attempt.job, absl::Seconds(1), {}), IsOk());
  Stopped("a", attempt);
  ASSERT_THAT(store_->ResumeJob(attempt.job, {}), IsOk());
  GangPlacement gang{attempt.job, Job(attempt).version, {{NodeId("a"), {0, 1}}}, ""};
  ASSERT_THAT(store_->Apply(Plan{{gang}, {}}), IsOk());
  EXPECT_EQ(Job(attempt).state, JobState::kQueued) << "step 10 is being published";
  ASSERT_THAT(store_->EndCheckpoint(*row, absl::OkStatus()), IsOk());
  ASSERT_THAT(store_->Apply(Plan{{gang}, {}}), IsOk());
  EXPECT_EQ(Job(attempt).state, JobState::kQueued) << "the plan did not know step 10";
  gang.version = Job(attempt).version;
  gang.resume_from = "/artifacts/step-5";
  ASSERT_THAT(store_->Apply(Plan{{gang}, {}}), IsOk());
  EXPECT_EQ(Job(attempt).state, JobState::kQueued) << "there is no such checkpoint";
  gang.resume_from = c.path;
  ASSERT_THAT(store_->Apply(Plan{{gang}, {}}), IsOk());
  EXPECT_EQ(Job(attempt).state, JobState::kStarting);
}

TEST_F(StoreOrdersTest, ARefusedCheckpointIsRejectedAndTheOneBeforeIsUsed) {
  Register("a");
  AttemptId attempt = RunResumable("j", {"a"});
  for (const int64_t step : {10, 20}) {
    CheckpointRecord c;
    c.job = attempt.job;
    c.attempt = attempt.number;
    c.step = step;
    c.path = absl::StrCat("/artifacts/step-", step);
    const auto row = store_->BeginCheckpoint(NodeId("a"), Incarnation("i-a"), c);
    ASSERT_THAT(row, IsOk());
    ASSERT_THAT(store_->EndCheckpoint(*row, absl::OkStatus()), IsOk());
  }
  ASSERT_THAT(store_->PauseJob(attempt.job, absl::Seconds(1), {}), IsOk());
  Stopped("a", attempt);
  ASSERT_THAT(store_->ResumeJob(attempt.job, {}), IsOk());

  FailureRecord refusal;
  refusal.reason = FailureReason::kCheckpointInvalid;
  refusal.message = "model.safetensors: the header is not JSON";
  const auto refuse = [&](const std::string& resume_from) {
    attempt = Place(*store_->GetJob(attempt.job), {"a"}, resume_from);
    Run("a", attempt);
    Report("a", {Say("a", attempt, FinishedReport{false, false, refusal})});
  };
  refuse("/artifacts/step-20");
  EXPECT_EQ(Job(attempt).state, JobState::kQueued) << Job(attempt).message;
  EXPECT_EQ(Job(attempt).retry.retries_used, 0);
  std::vector<int64_t> committed;
  const auto left = store_->ListCheckpoints(attempt.job, 0, 10);
  for (const CheckpointRecord& c : *left) committed.push_back(c.step);
  EXPECT_THAT(committed, ElementsAre(10));
  EXPECT_THAT(Events(attempt.job, "WARNING"),
              ElementsAre(AllOf(HasSubstr("CHECKPOINT_REJECTED"), HasSubstr("step 20"),
                                HasSubstr("model.safetensors: the header"))));

  refuse("/artifacts/step-10");
  EXPECT_EQ(Job(attempt).state, JobState::kFailed) << "two in a row are no accident of one file";
  EXPECT_THAT(*store_->ListCheckpoints(attempt.job, 0, 10), SizeIs(1)) << "it is kept";
}

}  // namespace
}  // namespace switchyard
