#include "server/scheduler/quarantine.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/store_testing.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// A tracker on a store, with the picture that the scheduler would have.
class QuarantineTest : public StoreTest {
 protected:
  void SetUp() override {
    StoreTest::SetUp();
    tracker_ = std::make_unique<QuarantineTracker>(*store_, config_);
    Register("a");
    Update();
  }
  std::vector<NodeView> Picture() {
    std::vector<NodeView> nodes;
    const auto records = store_->ListNodes();
    for (const NodeRecord& record : *records) {
      if (record.lost) continue;
      NodeView view;
      view.id = record.id;
      view.reachable = true;
      view.quarantined = !record.quarantine.message.empty();
      view.quarantine_level = record.quarantine.level;
      nodes.push_back(view);
    }
    return nodes;
  }
  // What changed, stored.
  std::vector<QuarantineChange> Update() {
    tracker_->Collect();
    std::vector<QuarantineChange> changes = tracker_->Update(clock_.Monotonic(), Picture());
    for (const QuarantineChange& c : changes) {
      EXPECT_THAT(store_->SetQuarantine(c.node, c.quarantine), IsOk());
    }
    return changes;
  }
  // The agent of node "a" begins another session this many times, 10 s apart.
  void Flap(int times) {
    for (int i = 0; i < times; ++i) {
      clock_.Advance(absl::Seconds(10));
      Register("a");
      Update();
    }
  }
  QuarantineRecord Held() { return store_->GetNode(NodeId("a"))->quarantine; }

  QuarantineConfig config_;
  std::unique_ptr<QuarantineTracker> tracker_;
};

TEST(QuarantinePeriodTest, DoublesUpToTheLongest) {
  const QuarantineConfig config;
  EXPECT_EQ(QuarantinePeriod(config, 1), absl::Minutes(1));
  EXPECT_EQ(QuarantinePeriod(config, 3), absl::Minutes(4));
  EXPECT_EQ(QuarantinePeriod(config, 1000), absl::Hours(1));
}

TEST_F(QuarantineTest, AFlappingNodeIsHeldUntilItIsCalm) {
  Flap(5);
  EXPECT_EQ(Held().message, "");
  Flap(1);
  EXPECT_NE(Held().message, "");
  EXPECT_EQ(Held().level, 1);
  Flap(20);  // goes on: the period begins anew each time
  EXPECT_NE(Held().message, "");
  clock_.Advance(absl::Seconds(59));
  Update();
  EXPECT_NE(Held().message, "");
  clock_.Advance(absl::Seconds(1));
  Update();
  EXPECT_EQ(Held().message, "");
}

TEST_F(QuarantineTest, EachTimeInARowLastsTwiceAsLong) {
  for (int level = 1; level <= 5; ++level) {
    Flap(6);
    EXPECT_EQ(Held().level, level);
    clock_.Advance(QuarantinePeriod(config_, level) - absl::Seconds(1));
    Update();
    EXPECT_NE(Held().message, "") << level;
    clock_.Advance(absl::Seconds(1));
    Update();
    EXPECT_EQ(Held().message, "") << level;
  }
  clock_.Advance(config_.calm + absl::Minutes(1));
  Flap(6);
  EXPECT_EQ(Held().level, 1) << "it was calm for long";
}

TEST_F(QuarantineTest, LostLeasesCountTwiceAndRareOnesNotAtAll) {
  for (int i = 0; i < 20; ++i) {
    clock_.Advance(absl::Minutes(11));
    ASSERT_THAT(store_->NodeLost(NodeId("a"), Incarnation("i-a")), IsOk());
    Register("a");
    EXPECT_THAT(Update(), IsEmpty());
  }
  // 3 each: lost, and back.
  clock_.Advance(absl::Minutes(1));
  ASSERT_THAT(store_->NodeLost(NodeId("a"), Incarnation("i-a")), IsOk());
  Register("a");
  EXPECT_THAT(Update(), SizeIs(1));
}

TEST_F(QuarantineTest, AnOperatorsWordEndsIt) {
  Flap(6);
  ASSERT_NE(Held().message, "");
  ASSERT_THAT(store_->SetNodeScheduling(NodeId("a"), NodeScheduling::kActive, absl::ZeroDuration(),
                                        "me", ""),
              IsOk());
  EXPECT_EQ(Held(), QuarantineRecord{});
  EXPECT_THAT(Update(), IsEmpty());
  Flap(6);
  EXPECT_EQ(Held().level, 1) << "counted from the beginning";
}

TEST_F(QuarantineTest, ANewCoordinatorKeepsItAndCountsTheTimeAnew) {
  Flap(6);
  ASSERT_NE(Held().message, "");
  tracker_ = std::make_unique<QuarantineTracker>(*store_, config_);
  clock_.Advance(absl::Hours(1));
  EXPECT_THAT(Update(), IsEmpty());
  Register("a");  // as every agent does with a new coordinator
  EXPECT_THAT(Update(), IsEmpty());
  clock_.Advance(absl::Seconds(60));
  EXPECT_THAT(Update(), SizeIs(1));
  EXPECT_EQ(Held(), (QuarantineRecord{1, ""}));
}

TEST_F(QuarantineTest, WhatCouldNotBeStoredIsAnsweredAgain) {
  Flap(5);
  Register("a");
  tracker_->Collect();
  ASSERT_THAT(tracker_->Update(clock_.Monotonic(), Picture()), SizeIs(1));
  EXPECT_THAT(Update(), SizeIs(1));
  EXPECT_THAT(Update(), IsEmpty());
}

TEST_F(QuarantineTest, ItIsInTheAuditLogAndToldToTheJobsThere) {
  const JobRecord job = Create("j");
  Run("a", Place(job, {"a"}));
  Flap(6);
  std::vector<std::string> actions;
  const auto audit = store_->ListAudit(0, 10);
  for (const AuditRecord& record : *audit) actions.push_back(record.action);
  EXPECT_THAT(actions, ElementsAre("QuarantineNode"));
  EXPECT_EQ(Get(job).state, JobState::kRunning) << "what runs goes on";
  const auto events = *store_->ReadEvents(job.id, 0, 100);
  EXPECT_THAT(events.back().message, testing::HasSubstr("node a is quarantined"));
}

TEST_F(QuarantineTest, NoPlanPlacesAGangOnAHeldNode) {
  const JobRecord job = Create("j");
  Flap(6);
  const GangPlacement gang{job.id, Get(job).version, {{NodeId("a"), {0, 1}}}, ""};
  ASSERT_THAT(store_->Apply(Plan{{gang}, {}}), IsOk());
  EXPECT_EQ(Get(job).state, JobState::kQueued);
}

}  // namespace
}  // namespace switchyard
