#include "server/scheduler/loop.h"

#include <stdlib.h>

#include <filesystem>
#include <memory>
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
  JobId Create(const std::string& name) {
    JobRecord job;
    job.id = JobId("projects/p/jobs/" + name);
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

}  // namespace
}  // namespace switchyard
