#include "server/scheduler/preemption.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/scheduler/policy.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

NodeView Node(const std::string& id, int devices, const std::string& kind = "H100") {
  NodeView node;
  node.id = NodeId(id);
  node.reachable = true;
  for (int i = 0; i < devices; ++i) node.devices.push_back({i, kind, false});
  return node;
}

// A cluster in which gangs can be put on devices.
class PreemptionTest : public testing::Test {
 protected:
  WaitingJob Job(const std::string& id, int ranks, int priority = 0) {
    WaitingJob job;
    job.id = JobId(id);
    job.version = 1;
    job.num_ranks = ranks;
    job.priority = priority;
    job.not_before = -absl::InfiniteDuration();
    return job;
  }
  GangOnNodes& Run(const std::string& id, int priority, const std::string& node,
                   std::vector<int32_t> devices, int since_seconds = 0) {
    for (NodeView& n : cluster_.nodes) {
      if (n.id.value() != node) continue;
      for (const int32_t d : devices) n.devices[static_cast<size_t>(d)].busy = true;
    }
    GangOnNodes gang;
    gang.job = JobId(id);
    gang.version = 5;
    gang.priority = priority;
    gang.resumable = true;
    gang.since = absl::Seconds(since_seconds);
    gang.members = {{NodeId(node), std::move(devices)}};
    cluster_.gangs.push_back(std::move(gang));
    return cluster_.gangs.back();
  }
  std::vector<std::string> VictimsOf(const WaitingJob& job) {
    cluster_.waiting = {job};
    plan_ = Decide(cluster_, absl::ZeroDuration());
    std::vector<std::string> out;
    for (const Preemption& p : plan_.preemptions) {
      EXPECT_EQ(p.for_job, job.id);
      out.push_back(p.job.value());
    }
    return out;
  }

  ClusterSnapshot cluster_;
  Plan plan_;
};

TEST_F(PreemptionTest, TakesTheLeastValuableSetOfWholeGangs) {
  cluster_.nodes = {Node("a", 8), Node("b", 8)};
  Run("low-old", 0, "a", {0, 1, 2, 3}, 10);
  Run("low-young", 0, "a", {4, 5, 6, 7}, 20);
  Run("mid", 5, "b", {0, 1, 2, 3, 4, 5, 6, 7});
  EXPECT_THAT(VictimsOf(Job("high", 4, 10)), ElementsAre("low-young"));
  EXPECT_THAT(VictimsOf(Job("high", 8, 10)), UnorderedElementsAre("low-old", "low-young"));
  EXPECT_THAT(VictimsOf(Job("high", 16, 10)), UnorderedElementsAre("low-old", "low-young", "mid"));
  EXPECT_THAT(VictimsOf(Job("high", 12, 5)), IsEmpty()) << "equal priorities are not touched";
  EXPECT_THAT(VictimsOf(Job("high", 8, 0)), IsEmpty());
  cluster_.gangs[1].resumable = false;
  EXPECT_THAT(VictimsOf(Job("high", 4, 10)), ElementsAre("low-old")) << "the other starts over";
}

TEST_F(PreemptionTest, SparesGangsThatALaterVictimMakesNeedless) {
  cluster_.nodes = {Node("a", 9)};
  Run("small", 0, "a", {0}, 30);
  Run("large", 1, "a", {1, 2, 3, 4, 5, 6, 7, 8}, 10);
  EXPECT_THAT(VictimsOf(Job("high", 8, 10)), ElementsAre("large"));
}

TEST_F(PreemptionTest, WaitsForStopsThatAreUnderWay) {
  cluster_.nodes = {Node("a", 8), Node("b", 8)};
  Run("leaving", 0, "a", {0, 1, 2, 3, 4, 5, 6, 7}).stopping = true;
  Run("running", 0, "b", {0, 1, 2, 3, 4, 5, 6, 7});
  EXPECT_THAT(VictimsOf(Job("high", 8, 10)), IsEmpty());
  ASSERT_EQ(plan_.holds.size(), 1u);
  EXPECT_THAT(plan_.holds[0].nodes, ElementsAre(NodeId("a")));
  EXPECT_THAT(VictimsOf(Job("high", 16, 10)), ElementsAre("running"));
}

TEST_F(PreemptionTest, StopsNobodyWhenItWouldNotBeEnough) {
  cluster_.nodes = {Node("a", 8), Node("b", 8)};
  Run("low", 0, "a", {0, 1, 2, 3, 4, 5, 6, 7});
  Run("higher", 20, "b", {0, 1, 2, 3, 4, 5, 6, 7});
  EXPECT_THAT(VictimsOf(Job("high", 16, 10)), IsEmpty());
}

TEST_F(PreemptionTest, GangsOnNodesThatCannotBeUsedAreLeftAlone) {
  cluster_.nodes = {Node("a", 8), Node("b", 8)};
  cluster_.nodes[0].cordoned = true;
  Run("low", 0, "a", {0, 1, 2, 3, 4, 5, 6, 7});
  Run("mid", 1, "b", {0, 1, 2, 3, 4, 5, 6, 7});
  EXPECT_THAT(VictimsOf(Job("high", 8, 10)), ElementsAre("mid"));
}

// Else a gang is stopped, its devices do not suit the job, it comes back and is stopped again.
TEST_F(PreemptionTest, GangsOnNodesThatTheJobAvoidsAreLeftAlone) {
  cluster_.nodes = {Node("a", 8), Node("b", 8), Node("c", 8)};
  Run("low", 0, "a", {0, 1, 2, 3, 4, 5, 6, 7});
  Run("mid", 1, "b", {0, 1, 2, 3, 4, 5, 6, 7});
  Run("equal", 10, "c", {0, 1, 2, 3, 4, 5, 6, 7});
  WaitingJob job = Job("high", 8, 10);
  job.avoided = {NodeId("a")};
  EXPECT_THAT(VictimsOf(job), ElementsAre("mid"));
  ASSERT_EQ(plan_.holds.size(), 1u);
  EXPECT_THAT(plan_.holds[0].nodes, ElementsAre(NodeId("b")));
  // Free devices there are no help either.
  cluster_.gangs.erase(cluster_.gangs.begin());
  for (DeviceView& d : cluster_.nodes[0].devices) d.busy = false;
  EXPECT_THAT(VictimsOf(job), ElementsAre("mid"));
  // Where nothing else is enough, nothing is avoided.
  job.avoided = {NodeId("a"), NodeId("b"), NodeId("c")};
  cluster_.nodes[0].cordoned = true;
  EXPECT_THAT(VictimsOf(job), ElementsAre("mid"));
}

TEST_F(PreemptionTest, FreedDevicesGoToTheJobTheyWereFreedFor) {
  cluster_.nodes = {Node("a", 8)};
  Run("leaving", 0, "a", {0, 1, 2, 3}).stopping = true;
  cluster_.waiting = {Job("high", 8, 10), Job("small", 1, 0)};
  const Plan plan = Decide(cluster_, absl::ZeroDuration());
  EXPECT_THAT(plan.placements, IsEmpty()) << "four are free, but held";
}

TEST_F(PreemptionTest, SmallJobsFillWhatTheHeadDoesNotWaitFor) {
  cluster_.nodes = {Node("a", 8), Node("b", 8), Node("c", 8)};
  Run("x", 0, "a", {0});
  Run("y", 0, "b", {0, 1, 2, 3});
  Run("z", 0, "c", {0, 1, 2, 3});
  cluster_.waiting = {Job("large", 18), Job("small", 2), Job("wide", 8)};
  Plan plan = Decide(cluster_, absl::ZeroDuration());
  ASSERT_EQ(plan.holds.size(), 1u);
  EXPECT_EQ(plan.holds[0].nodes.size(), 3u) << "it needs all three";
  EXPECT_THAT(plan.placements, IsEmpty());
  cluster_.waiting[0].num_ranks = 16;
  plan = Decide(cluster_, absl::ZeroDuration());
  EXPECT_THAT(plan.holds[0].nodes, ElementsAre(NodeId("a"), NodeId("b")));
  ASSERT_EQ(plan.placements.size(), 1u);
  EXPECT_EQ(plan.placements[0].job, JobId("small"));
  EXPECT_EQ(plan.placements[0].members[0].node, NodeId("c"));
}

TEST_F(PreemptionTest, AHoldStaysWhereItIs) {
  cluster_.nodes = {Node("a", 8), Node("b", 8)};
  Run("x", 0, "a", {0, 1, 2, 3, 4, 5});
  Run("y", 0, "b", {0, 1, 2});
  cluster_.waiting = {Job("large", 8)};
  cluster_.holds = {{JobId("large"), "H100", {NodeId("a")}}};
  EXPECT_THAT(Decide(cluster_, absl::ZeroDuration()).holds[0].nodes, ElementsAre(NodeId("a")));
  cluster_.nodes[0].reachable = false;
  EXPECT_THAT(Decide(cluster_, absl::ZeroDuration()).holds[0].nodes, ElementsAre(NodeId("b")));
}

TEST_F(PreemptionTest, AvoidsANodeThatFailedWhileOthersAreEnough) {
  cluster_.nodes = {Node("a", 2), Node("b", 4)};
  WaitingJob job = Job("j", 2);
  job.avoided = {NodeId("a")};
  cluster_.waiting = {job};
  EXPECT_EQ(Decide(cluster_, {}).placements[0].members[0].node, NodeId("b"));
  cluster_.waiting[0].num_ranks = 6;
  EXPECT_EQ(Decide(cluster_, {}).placements.size(), 1u) << "without it there are not enough";
}

// A stream of small jobs that never ends, against one gang that needs the whole cluster.
TEST_F(PreemptionTest, NoStreamOfSmallJobsStarvesALargeGang) {
  std::mt19937 rng(7);
  for (const int ranks : {12, 24, 32}) {
    cluster_ = {};
    for (int n = 0; n < 4; ++n) cluster_.nodes.push_back(Node(absl::StrCat("n", n), 8));
    std::map<std::string, int> ends;  // gang -> time
    int started = -1;
    for (int time = 0; time < 400 && started < 0; ++time) {
      for (size_t g = 0; g < cluster_.gangs.size();) {
        if (ends[cluster_.gangs[g].job.value()] > time) {
          ++g;
          continue;
        }
        for (const GangMember& m : cluster_.gangs[g].members) {
          for (NodeView& n : cluster_.nodes) {
            for (const int32_t d : m.devices) {
              if (n.id == m.node) n.devices[static_cast<size_t>(d)].busy = false;
            }
          }
        }
        cluster_.gangs.erase(cluster_.gangs.begin() + static_cast<std::ptrdiff_t>(g));
      }
      cluster_.waiting.clear();
      if (time >= 20) cluster_.waiting.push_back(Job("large", ranks));
      for (int j = 0; j < 8; ++j) {
        cluster_.waiting.push_back(Job(absl::StrCat("s", time, "-", j), 1 + (rng() % 3)));
      }
      const Plan plan = Decide(cluster_, absl::ZeroDuration());
      for (const GangPlacement& p : plan.placements) {
        if (p.job == JobId("large")) started = time;
        for (const GangMember& m : p.members) {
          Run(p.job.value() + m.node.value(), 0, m.node.value(), m.devices);
          ends[p.job.value() + m.node.value()] = time + 1 + static_cast<int>(rng() % 30);
        }
      }
      cluster_.holds = plan.holds;
    }
    EXPECT_GE(started, 20) << ranks;
    EXPECT_LE(started, 20 + 31) << ranks << ": as soon as the gangs that ran have ended";
  }
}

// Whatever is decided: victims are of lower priority, running, named once, and enough.
TEST_F(PreemptionTest, RandomVictimsAreLowerNeededAndEnough) {
  std::mt19937 rng(20261124);
  const auto draw = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
  int seen = 0;
  for (int round = 0; round < 2000; ++round) {
    cluster_ = {};
    for (int n = 0; n < 1 + draw(5); ++n) {
      cluster_.nodes.push_back(Node(absl::StrCat("n", n), 1 + draw(8)));
    }
    for (size_t n = 0; n < cluster_.nodes.size(); ++n) {
      const int devices = static_cast<int>(cluster_.nodes[n].devices.size());
      for (int d = 0; d < devices;) {
        const int size = std::min(1 + draw(4), devices - d);
        std::vector<int32_t> taken;
        for (int i = 0; i < size; ++i) taken.push_back(d + i);
        d += size;
        if (draw(4) == 0) continue;
        Run(absl::StrCat("g", n, "-", d), draw(4), absl::StrCat("n", n), taken, draw(50)).stopping =
            draw(6) == 0;
      }
    }
    const WaitingJob job = Job("high", 1 + draw(12), draw(5));
    const std::vector<std::string> victims = VictimsOf(job);
    if (victims.empty()) continue;
    ++seen;
    ASSERT_THAT(plan_.placements, IsEmpty());
    const std::set<std::string> unique(victims.begin(), victims.end());
    ASSERT_EQ(unique.size(), victims.size());
    int free = 0;
    for (const NodeView& n : cluster_.nodes) {
      for (const DeviceView& d : n.devices) free += d.busy ? 0 : 1;
    }
    int smallest = 1 << 20;
    for (const GangOnNodes& g : cluster_.gangs) {
      const int devices = static_cast<int>(g.members[0].devices.size());
      if (g.stopping) free += devices;
      if (!unique.contains(g.job.value())) continue;
      ASSERT_FALSE(g.stopping);
      ASSERT_LT(g.priority, job.priority);
      free += devices;
      smallest = std::min(smallest, devices);
    }
    ASSERT_GE(free, job.num_ranks) << "it will fit";
    ASSERT_LT(free - smallest, job.num_ranks) << "none could be left out";
  }
  EXPECT_GT(seen, 200);
}

}  // namespace
}  // namespace switchyard
