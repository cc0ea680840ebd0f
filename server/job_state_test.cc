#include "server/job_state.h"

#include <set>

#include "base/fd.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(JobStateTest, NothingLeavesAFinalState) {
  for (JobState from : AllJobStates()) {
    for (JobState to : AllJobStates()) {
      EXPECT_FALSE(IsFinal(from) && IsLegal(from, to)) << Name(from) << " to " << Name(to);
    }
  }
  for (AttemptState from : AllAttemptStates()) {
    for (AttemptState to : AllAttemptStates()) {
      EXPECT_FALSE(IsFinal(from) && IsLegal(from, to)) << Name(from) << " to " << Name(to);
    }
  }
}

TEST(JobStateTest, EveryStateIsReachableAndCanEnd) {
  std::set<JobState> reached;
  std::set<JobState> left;
  for (const JobTransition& t : JobTransitions()) {
    reached.insert(t.to);
    if (t.from) left.insert(*t.from);
  }
  for (JobState state : AllJobStates()) {
    EXPECT_TRUE(reached.contains(state)) << Name(state);
    EXPECT_NE(left.contains(state), IsFinal(state)) << Name(state);
  }
}

TEST(JobStateTest, EveryReasonHasItsDomain) {
  for (const FailureReason reason : AllFailureReasons())
    EXPECT_FALSE(Name(DomainOf(reason)).empty());
  EXPECT_EQ(DomainOf(FailureReason::kDataInvalid), FailureDomain::kUser);
  EXPECT_EQ(DomainOf(FailureReason::kNanLoss), FailureDomain::kUser);
  EXPECT_EQ(DomainOf(FailureReason::kNodeLost), FailureDomain::kInfrastructure);
  EXPECT_EQ(DomainOf(FailureReason::kGpuXid), FailureDomain::kHardware);
  EXPECT_EQ(DomainOf(FailureReason::kPreempted), FailureDomain::kOrder);
  EXPECT_EQ(DomainOf(FailureReason::kDeadline), FailureDomain::kFinal);
}

TEST(JobStateTest, TheDocumentIsCurrent) {
  const absl::StatusOr<std::string> text = ReadFile(SY_STATES_MD);
  ASSERT_THAT(text, IsOk());
  EXPECT_EQ(*text, StatesMarkdown()) << "run: switchyardd --print-states > docs/states.md";
}

}  // namespace
}  // namespace switchyard
