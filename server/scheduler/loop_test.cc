#include "server/scheduler/loop.h"

#include <stdlib.h>

#include <filesystem>
#include <memory>
#include <set>
#include <vector>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/database.h"

namespace switchyard {
namespace {

using testing::ElementsAre;

class SchedulerLoopTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "loop_test.XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    StoreOptions options;
    options.folder = folder_;
    auto store = Store::Open(std::move(options), clock_);
    ASSERT_THAT(store, IsOk());
    store_ = *std::move(store);
    loop_ = std::make_unique<SchedulerLoop>(
        *store_, leases_, clock_, [](const JobRecord&) { return std::string(); },
        [this](const NodeId& node) { expired_.push_back(node); });
  }
  void TearDown() override {
    loop_.reset();
    store_.reset();
    std::filesystem::remove_all(folder_);
  }
  void Register(const std::string& name) {
    NodeRecord node;
    node.id = NodeId(name);
    node.incarnation = Incarnation("one");
    node.boot_id = "boot";
    node.devices.push_back({0, "cpu", 1 << 30, ""});
    ASSERT_THAT(leases_.Acquire({node.id, node.incarnation}, {node.boot_id, ""}), IsOk());
    ASSERT_THAT(store_->RegisterNode(node, {}), IsOk());
  }
  JobId Create(const std::string& name, int32_t priority = 0) {
    JobRecord job;
    job.id = JobId("projects/p/jobs/" + name);
    job.uid = "uid-" + name;
    job.needs.priority = priority;
    job.project = "p";
    job.needs.num_ranks = 1;
    job.needs.cpu_only = true;
    EXPECT_THAT(store_->CreateJob(job, {}), IsOk());
    return job.id;
  }
  JobState State(const JobId& job) { return store_->GetJob(job)->state; }

  std::string folder_;
  SimClock clock_;
  std::unique_ptr<Store> store_;
  LeaseTable leases_{LeaseConfig{}, clock_};
  std::vector<NodeId> expired_;
  std::unique_ptr<SchedulerLoop> loop_;
};

TEST_F(SchedulerLoopTest, ALostNodeIsStoredLaterWhenTheStoreRefusesAtFirst) {
  Register("n");
  const JobId job = Create("j");
  ASSERT_THAT(loop_->RunOnce(), IsOk());
  ASSERT_THAT(store_->TakeOrders(NodeId("n"), Incarnation("one")), IsOk());
  ASSERT_EQ(State(job), JobState::kStarting);
  // Stands for a full disk.
  const auto other = Database::Open(folder_ + "/switchyard.db", OpenMode::kReadWrite);
  ASSERT_THAT(other, IsOk());
  ASSERT_THAT((*other)->Execute("CREATE TRIGGER refuse BEFORE UPDATE OF lost ON nodes BEGIN "
                                "SELECT RAISE(ABORT, 'no'); END"),
              IsOk());
  clock_.Advance(absl::Minutes(10));
  EXPECT_THAT(loop_->RunOnce(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(State(job), JobState::kStarting);
  EXPECT_THAT(expired_, ElementsAre());

  ASSERT_THAT((*other)->Execute("DROP TRIGGER refuse"), IsOk());
  EXPECT_THAT(loop_->RunOnce(), IsOk());
  EXPECT_THAT(expired_, ElementsAre(NodeId("n")));
  EXPECT_NE(State(job), JobState::kStarting) << "the attempt is closed, for its node is lost";
  EXPECT_THAT(*store_->Reservations(), ElementsAre());
}

TEST_F(SchedulerLoopTest, AHigherPriorityTakesTheDevicesAndGivesThemBack) {
  Register("n");
  const JobId low = Create("low");
  ASSERT_THAT(loop_->RunOnce(), IsOk());
  ASSERT_THAT(store_->TakeOrders(NodeId("n"), Incarnation("one")), IsOk());
  const JobId high = Create("high", 5);
  const JobId later = Create("later");
  ASSERT_THAT(loop_->RunOnce(), IsOk());
  EXPECT_EQ(State(low), JobState::kStopping);
  EXPECT_EQ(State(high), JobState::kQueued);
  ASSERT_THAT(store_->RecordReports(NodeId("n"), Incarnation("one"),
                                    {{1, {low, 1}, FinishedReport{false, true, absl::nullopt}}}),
              IsOk());
  EXPECT_EQ(State(low), JobState::kQueued);
  ASSERT_THAT(loop_->RunOnce(), IsOk());
  EXPECT_EQ(State(high), JobState::kStarting);
  ASSERT_THAT(store_->CancelJob(high, absl::ZeroDuration(), {}), IsOk());
  ASSERT_THAT(loop_->RunOnce(), IsOk());
  EXPECT_EQ(State(low), JobState::kStarting) << "it is older than the other";
  EXPECT_EQ(State(later), JobState::kQueued);
}

TEST_F(SchedulerLoopTest, SilenceIsAConditionAndEndsWithAHeartbeat) {
  Register("n");
  const JobId job = Create("j");
  ASSERT_THAT(loop_->RunOnce(), IsOk());
  ASSERT_THAT(store_->TakeOrders(NodeId("n"), Incarnation("one")), IsOk());
  clock_.Advance(absl::Seconds(16));
  ASSERT_THAT(loop_->RunOnce(), IsOk());
  ASSERT_EQ(store_->ListConditions(job)->size(), 1u);
  EXPECT_EQ(store_->ListConditions(job)->at(0).type, ConditionType::kUnreachable);
  EXPECT_EQ(State(job), JobState::kStarting) << "a suspicion moves nothing";
  ASSERT_THAT(leases_.Renew({NodeId("n"), Incarnation("one")}), IsOk());
  clock_.Advance(absl::Seconds(2));
  ASSERT_THAT(loop_->RunOnce(), IsOk());
  EXPECT_THAT(*store_->ListConditions(job), ElementsAre());
}

// What the loop sees after any history is what a new one reads from the database.
TEST_F(SchedulerLoopTest, TheKeptViewEqualsAFreshOne) {
  for (const char* name : {"a", "b", "c"}) Register(name);
  for (int i = 0; i < 30; ++i) {
    const JobId job = Create("j" + std::to_string(i), i % 3);
    ASSERT_THAT(loop_->RunOnce(), IsOk());
    for (const char* name : {"a", "b", "c"}) {
      if (store_->GetNode(NodeId(name))->lost) continue;
      ASSERT_THAT(store_->TakeOrders(NodeId(name), Incarnation("one")), IsOk());
    }
    if (i % 4 == 1) {
      ASSERT_THAT(store_->CancelJob(job, absl::ZeroDuration(), {}), IsOk());
    }
    if (i == 20) {
      ASSERT_THAT(store_->SetNodeScheduling(NodeId("b"), NodeScheduling::kCordoned, {}, "me", ""),
                  IsOk());
      ASSERT_THAT(store_->ConfirmNodeDead(NodeId("c"), "me", ""), IsOk());
    }
    SchedulerLoop fresh(
        *store_, leases_, clock_, [](const JobRecord&) { return std::string(); },
        [](const NodeId&) {});
    const auto kept = loop_->Snapshot();
    const auto read = fresh.Snapshot();
    ASSERT_THAT(kept, IsOk());
    ASSERT_THAT(read, IsOk());
    ASSERT_EQ(kept->nodes.size(), read->nodes.size());
    for (size_t n = 0; n < kept->nodes.size(); ++n) {
      EXPECT_EQ(kept->nodes[n].id, read->nodes[n].id);
      EXPECT_EQ(kept->nodes[n].cordoned, read->nodes[n].cordoned);
      EXPECT_EQ(kept->nodes[n].devices[0].busy, read->nodes[n].devices[0].busy);
    }
    ASSERT_EQ(kept->waiting.size(), read->waiting.size());
    for (size_t w = 0; w < kept->waiting.size(); ++w) {
      EXPECT_EQ(kept->waiting[w].id, read->waiting[w].id);
      EXPECT_EQ(kept->waiting[w].version, read->waiting[w].version);
    }
    std::set<JobId> gangs;
    for (const GangOnNodes& gang : kept->gangs) gangs.insert(gang.job);
    for (const GangOnNodes& gang : read->gangs) EXPECT_EQ(gangs.erase(gang.job), 1u);
    EXPECT_TRUE(gangs.empty());
  }
}

}  // namespace
}  // namespace switchyard
