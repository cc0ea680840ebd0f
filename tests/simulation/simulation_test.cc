#include <stdlib.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/simulation/campaign.h"

namespace switchyard::simulation {
namespace {

using testing::Gt;
using testing::IsEmpty;

TEST(SimulationTest, TheSameSeedIsTheSameHistory) {
  const SeedResult first = RunSeed(7);
  const SeedResult second = RunSeed(7);
  EXPECT_EQ(first.digest, second.digest);
  EXPECT_EQ(first.counts, second.counts);
  EXPECT_NE(first.digest, RunSeed(8).digest);
}

// Seeds that once broke an invariant. The number of draws changes with the code, so a seed does not
// show its bug for ever: each bug has a test of its own too, named here.
TEST(SimulationTest, SeedsOfFoundBugsHold) {
  for (const uint64_t seed : {
           20u,      // AgentCoreTest.NothingIsLaunchedWithoutALease
           33u,      // AgentCoreTest.AttemptIsForgottenOnlyTogetherWithItsOrder
           34u,      // LeaseTest.AnEarlierLifeDoesNotComeBack
           200443u,  // AgentCoreTest.OrdersThatWaitedPastTheLeaseStartNothing
       }) {
    EXPECT_THAT(RunSeed(seed).violation, IsEmpty()) << "seed " << seed;
  }
}

// About 20 s. Another first seed every day would make a red main nobody's fault: fixed seeds here,
// fresh ones by hand (--seed).
TEST(SimulationTest, InvariantsHoldAndFaultsHappen) {
  CampaignOptions options;
  options.first_seed = 1000;
  options.lives = 1500;
  const CampaignResult result = RunCampaign(options);
  EXPECT_THAT(result.violation, IsEmpty()) << "seed " << result.failed_seed;
  EXPECT_GE(result.num_lives, options.lives);
  for (const char* what : {
           "agent: adopted a living gang",
           "agent: journal refused by a full disk",
           "attempt: -> FAILED",
           "attempt: -> LOST",
           "attempt: -> RELEASED",
           "attempt: -> STOPPED",
           "checkpoint: committed",
           "checkpoint: rejected, an older one is used",
           "commit: refused CHECKPOINT_REJECTED",
           "coordinator: killed after a commit",
           "coordinator: killed within a write",
           "coordinator: lease expired",
           "fault: agent killed",
           "fault: agent stopped",
           "fault: agent terminated",
           "fault: checkpoint damaged",
           "fault: coordinator killed",
           "fault: coordinator stopped",
           "fault: link cut",
           "fault: link cut downwards, then upwards; answers are held back",
           "fault: machine flaps",
           "fault: machine frozen",
           "fault: machine rebooted",
           "fault: trainers killed",
           "fault: wall clock jumps",
           "fence: reports of a stale incarnation refused",
           "fence: stale reports",
           "job: STOPPING -> CANCELLED",
           "job: STOPPING -> PAUSED",
           "job: PAUSED -> QUEUED",
           "job: RUNNING -> QUEUED",
           "job: RUNNING -> FAILED",
           "job: RUNNING -> SUCCEEDED",
           "job: told to stop, DRAIN",
           "job: told to stop, PREEMPTED",
           "job: told to stop, USER",
           "network: message late",
           "network: message lost",
           "network: request twice",
           "node: quarantined",
           "node: released from quarantine",
           "publisher: killed before its rename",
           "shim: killed past the deadline",
           "store: commit failed with EIO",
           "store: history pruned",
           "store: statement refused by a full disk",
           "trainers: crash",
           "trainers: hang",
           "trainers: resumed",
           "trainers: torn checkpoint",
       }) {
    const auto it = result.counts.find(what);
    EXPECT_THAT(it == result.counts.end() ? 0 : it->second, Gt(0)) << what;
  }
}

}  // namespace
}  // namespace switchyard::simulation
