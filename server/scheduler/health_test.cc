#include "server/scheduler/health.h"

#include "base/clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/store_testing.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(AssessTest, AStallIsJudgedByTheUsualStepAndAFloor) {
  GangHealth gang;
  const HealthConfig config;
  const auto stalled = [&](int seconds) {
    return Assess(ConditionType::kStalled, gang, config, absl::Seconds(seconds)).has_value();
  };
  EXPECT_FALSE(stalled(100000)) << "loading has no steps";
  gang.step = 7;
  gang.usual_step_seconds = 1;
  EXPECT_FALSE(stalled(60));
  EXPECT_TRUE(stalled(61));
  gang.usual_step_seconds = 30;
  EXPECT_FALSE(stalled(150));
  EXPECT_TRUE(stalled(151));
  gang.stopping = true;
  gang.since = absl::Seconds(1000);
  gang.stop_grace = absl::Seconds(30);
  EXPECT_FALSE(stalled(1090));
  EXPECT_TRUE(stalled(1091));
}

TEST(AssessTest, CheckpointsAreStaleAfterTwoIntervals) {
  GangHealth gang;
  gang.checkpoint_every = 10;
  gang.checkpoint_step = 5;
  gang.step = 25;
  EXPECT_EQ(Assess(ConditionType::kCheckpointStale, gang, {}, {}), absl::nullopt);
  gang.step = 26;
  EXPECT_NE(Assess(ConditionType::kCheckpointStale, gang, {}, {}), absl::nullopt);
  gang.checkpoint_every = 0;
  EXPECT_EQ(Assess(ConditionType::kCheckpointStale, gang, {}, {}), absl::nullopt);
}

class HealthTrackerTest : public StoreTest {
 protected:
  void SetUp() override {
    StoreTest::SetUp();
    tracker_ = std::make_unique<HealthTracker>(*store_, HealthConfig{});
    Register("a");
    attempt_ = Place(Create("j"), {"a"});
    Run("a", attempt_);
    NodeView node;
    node.id = NodeId("a");
    node.reachable = true;
    nodes_ = {node};
    Changes();  // the first look tells what is not so
  }
  void Step(int64_t step, int32_t slow_rank, double ratio) {
    StepReport report;
    report.step = step;
    report.step_seconds = 1;
    report.slow_rank = slow_rank;
    report.slow_ratio = ratio;
    Report("a", {Say("a", attempt_, report)});
  }
  // "STALLED: message" or "STALLED is over".
  std::vector<std::string> Changes() {
    std::map<JobId, JobView> live;
    const std::vector<JobView> views = *store_->ViewJobs();
    for (const JobView& job : views) live[job.id] = job;
    std::vector<std::string> out;
    for (const ConditionChange& c : tracker_->Update(clock_.Monotonic(), live, nodes_)) {
      out.push_back(std::string(Name(c.type)) + (c.message ? ": " + *c.message : " is over"));
    }
    return out;
  }

  std::unique_ptr<HealthTracker> tracker_;
  AttemptId attempt_;
  std::vector<NodeView> nodes_;
};

TEST_F(HealthTrackerTest, NamesTheRankThatOthersWaitFor) {
  for (int step = 1; step <= 9; ++step) Step(step, 3, 2.0);
  EXPECT_THAT(Changes(), IsEmpty());
  Step(10, 3, 2.0);
  EXPECT_THAT(Changes(), ElementsAre("STRAGGLING: rank 3 is busy 2.0 times as long as the median "
                                     "rank"));
  for (int step = 11; step <= 30; ++step) Step(step, 3, 1.8);
  EXPECT_THAT(Changes(), IsEmpty()) << "told once";
  for (int step = 31; step <= 40; ++step) Step(step, 1, 1.1);
  EXPECT_THAT(Changes(), ElementsAre("STRAGGLING is over"));
}

TEST_F(HealthTrackerTest, DifferentSlowRanksAreNoStraggler) {
  for (int step = 1; step <= 50; ++step) Step(step, step % 2, 3.0);
  EXPECT_THAT(Changes(), IsEmpty());
}

TEST_F(HealthTrackerTest, AStallEndsWithTheNextStep) {
  Step(1, -1, 0);
  EXPECT_THAT(Changes(), IsEmpty());
  clock_.Advance(absl::Seconds(61));
  EXPECT_THAT(Changes(), ElementsAre(HasSubstr("STALLED: no step after 1")));
  tracker_->Retell();
  EXPECT_THAT(Changes(), testing::Contains(HasSubstr("STALLED: no step after 1")));
  Step(2, -1, 0);
  EXPECT_THAT(Changes(), ElementsAre("STALLED is over"));
}

TEST_F(HealthTrackerTest, SilentAndDrainedNodesAreNamed) {
  nodes_[0].reachable = false;
  nodes_[0].draining = true;
  EXPECT_THAT(Changes(),
              ElementsAre("UNREACHABLE: not heard from: a", "DRAINING: being drained: a"));
}

}  // namespace
}  // namespace switchyard
