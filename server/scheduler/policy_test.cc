#include "server/scheduler/policy.h"

#include <map>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

NodeView Node(const std::string& id, const std::string& kind, int devices, int busy = 0) {
  NodeView node;
  node.id = NodeId(id);
  node.reachable = true;
  for (int i = 0; i < devices; ++i) node.devices.push_back({i, kind, i < busy});
  return node;
}
WaitingJob Job(const std::string& id, int ranks, bool cpu_only = false) {
  WaitingJob job;
  job.id = JobId(id);
  job.version = 7;
  job.num_ranks = ranks;
  job.cpu_only = cpu_only;
  job.not_before = -absl::InfiniteDuration();
  return job;
}

ClusterSnapshot Cluster(std::vector<NodeView> nodes, std::vector<WaitingJob> waiting) {
  ClusterSnapshot snapshot;
  snapshot.nodes = std::move(nodes);
  snapshot.waiting = std::move(waiting);
  return snapshot;
}
Plan DecideOn(std::vector<NodeView> nodes, std::vector<WaitingJob> waiting) {
  return Decide(Cluster(std::move(nodes), std::move(waiting)), absl::ZeroDuration());
}

TEST(PolicyTest, PlacesOnTheNodeWithTheLeastRoomToSpare) {
  const Plan plan = DecideOn({Node("big", "cpu", 8), Node("small", "cpu", 2)}, {Job("j", 2)});
  ASSERT_EQ(plan.placements.size(), 1u);
  EXPECT_EQ(plan.placements[0].members, (std::vector<GangMember>{{NodeId("small"), {0, 1}}}));
  EXPECT_EQ(plan.placements[0].version, 7);
}

TEST(PolicyTest, SpansTheFewestNodes) {
  const Plan plan =
      DecideOn({Node("a", "cpu", 2), Node("b", "cpu", 4), Node("c", "cpu", 1)}, {Job("j", 5)});
  ASSERT_EQ(plan.placements.size(), 1u);
  EXPECT_EQ(plan.placements[0].members,
            (std::vector<GangMember>{{NodeId("b"), {0, 1, 2, 3}}, {NodeId("a"), {0}}}));
}

TEST(PolicyTest, PlacesNothingOfAGangThatDoesNotFitWhole) {
  const Plan plan = DecideOn({Node("a", "cpu", 4, 1)}, {Job("j", 4)});
  EXPECT_TRUE(plan.placements.empty());
  ASSERT_EQ(plan.pending.size(), 1u);
  EXPECT_EQ(plan.pending[0].reason, PendingReason::kResources);
  EXPECT_THAT(plan.pending[0].message, AllOf(HasSubstr("needs 4"), HasSubstr("cpu: 3 of 4")));
}

TEST(PolicyTest, TheHeadOfTheLineHoldsBackThoseBehindIt) {
  const Plan plan = DecideOn({Node("a", "cpu", 4, 2)}, {Job("large", 4), Job("small", 1)});
  EXPECT_TRUE(plan.placements.empty());
  ASSERT_EQ(plan.pending.size(), 2u);
  EXPECT_THAT(plan.pending[1].message, HasSubstr("1 jobs wait before it"));
}

TEST(PolicyTest, AGangLargerThanTheClusterIsSaidSoAndHoldsNobodyBack) {
  const Plan plan = DecideOn({Node("a", "cpu", 2)}, {Job("huge", 4), Job("small", 2)});
  ASSERT_EQ(plan.pending.size(), 1u);
  EXPECT_EQ(plan.pending[0].reason, PendingReason::kConstraintsUnsatisfiable);
  EXPECT_THAT(plan.pending[0].message, AllOf(HasSubstr("needs 4"), HasSubstr("cpu: 2")));
  ASSERT_EQ(plan.placements.size(), 1u);
  EXPECT_EQ(plan.placements[0].job, JobId("small"));
}

TEST(PolicyTest, NoDevicesAtAllIsUnsatisfiable) {
  const Plan plan = DecideOn({}, {Job("j", 1)});
  ASSERT_EQ(plan.pending.size(), 1u);
  EXPECT_EQ(plan.pending[0].reason, PendingReason::kConstraintsUnsatisfiable);
  EXPECT_THAT(plan.pending[0].message, HasSubstr("none is registered"));
}

TEST(PolicyTest, AJobInBackoffWaitsAndHoldsNobodyBack) {
  WaitingJob backoff = Job("retry", 2);
  backoff.not_before = absl::Seconds(10);
  const ClusterSnapshot snapshot = Cluster({Node("a", "cpu", 2)}, {backoff, Job("next", 2)});
  const Plan early = Decide(snapshot, absl::Seconds(9));
  ASSERT_EQ(early.placements.size(), 1u);
  EXPECT_EQ(early.placements[0].job, JobId("next"));
  EXPECT_EQ(early.pending[0].reason, PendingReason::kRetryBackoff);
  EXPECT_EQ(Decide(snapshot, absl::Seconds(10)).placements[0].job, JobId("retry"));
}

TEST(PolicyTest, UnreachableNodesGetNothingButStillCount) {
  NodeView silent = Node("a", "cpu", 2);
  silent.reachable = false;
  const Plan plan = DecideOn({silent}, {Job("j", 2)});
  EXPECT_TRUE(plan.placements.empty());
  EXPECT_EQ(plan.pending[0].reason, PendingReason::kMaintenance);
}

TEST(PolicyTest, GangsAreOfOneKindAndCpuRanksAreForThoseThatAsk) {
  const std::vector<NodeView> nodes = {Node("c", "cpu", 8), Node("g", "H100", 2)};
  const Plan plan = DecideOn(nodes, {Job("gpu", 2), Job("cpu", 2, true), Job("mixed", 4)});
  ASSERT_EQ(plan.placements.size(), 2u);
  EXPECT_EQ(plan.placements[0].members[0].node, NodeId("g"));
  EXPECT_EQ(plan.placements[1].members[0].node, NodeId("c"));
  EXPECT_EQ(plan.pending[0].reason, PendingReason::kConstraintsUnsatisfiable);
}

TEST(PolicyTest, AJobThatWaitsForGpusDoesNotHoldBackCpuJobs) {
  const Plan plan = DecideOn({Node("c", "cpu", 2), Node("g", "H100", 2, 1)},
                             {Job("gpu", 2), Job("cpu", 2, true)});
  ASSERT_EQ(plan.placements.size(), 1u);
  EXPECT_EQ(plan.placements[0].job, JobId("cpu"));
}

// Random clusters and queues: whatever is decided keeps the promises.
TEST(PolicyTest, RandomPlansPlaceWholeGangsOnFreeDevicesOnce) {
  std::mt19937 rng(20261124);
  const auto draw = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
  int placed = 0;
  for (int round = 0; round < 3000; ++round) {
    ClusterSnapshot snapshot;
    const char* kinds[] = {"cpu", "H100", "H200"};
    for (int n = draw(6); n > 0; --n) {
      NodeView node = Node(absl::StrCat("n", n), kinds[draw(3)], draw(9));
      node.reachable = draw(5) != 0;
      for (DeviceView& d : node.devices) d.busy = draw(3) == 0;
      snapshot.nodes.push_back(std::move(node));
    }
    for (int j = draw(8); j > 0; --j) {
      WaitingJob job = Job(absl::StrCat("j", j), 1 + draw(10), draw(2) == 0);
      if (draw(6) == 0) job.not_before = absl::Seconds(1);
      snapshot.waiting.push_back(std::move(job));
    }
    const Plan plan = Decide(snapshot, absl::ZeroDuration());

    std::map<std::pair<NodeId, int32_t>, std::string> free;
    for (const NodeView& node : snapshot.nodes) {
      for (const DeviceView& d : node.devices) {
        if (node.reachable && !d.busy) free[{node.id, d.index}] = d.kind;
      }
    }
    std::set<JobId> told;
    for (const GangPlacement& gang : plan.placements) {
      ASSERT_TRUE(told.insert(gang.job).second);
      ++placed;
      int ranks = 0;
      std::set<std::string> gang_kinds;
      std::set<NodeId> gang_nodes;
      for (const GangMember& member : gang.members) {
        ASSERT_FALSE(member.devices.empty());
        ASSERT_TRUE(gang_nodes.insert(member.node).second) << "a node is in a gang twice";
        for (int32_t device : member.devices) {
          const auto it = free.find({member.node, device});
          ASSERT_NE(it, free.end()) << "a device is busy, unreachable or placed twice";
          gang_kinds.insert(it->second);
          free.erase(it);
          ++ranks;
        }
      }
      for (const WaitingJob& job : snapshot.waiting) {
        if (job.id != gang.job) continue;
        ASSERT_EQ(ranks, job.num_ranks) << "a part of a gang was placed";
        ASSERT_LE(job.not_before, absl::ZeroDuration());
        ASSERT_TRUE(!job.cpu_only || gang_kinds.contains("cpu"));
      }
      ASSERT_EQ(gang_kinds.size(), 1u);
    }
    for (const PendingNote& note : plan.pending) ASSERT_TRUE(told.insert(note.job).second);
    ASSERT_EQ(told.size(), snapshot.waiting.size())
        << "every waiting job is placed or told why not";
  }
  EXPECT_GT(placed, 1000);
}

}  // namespace
}  // namespace switchyard
