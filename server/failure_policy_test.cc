#include "server/failure_policy.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

FailureRecord Failure(FailureReason reason, const std::string& line = "", int rank = 0,
                      const std::string& node = "a") {
  FailureRecord failure;
  failure.reason = reason;
  failure.message = "it broke";
  failure.rank = rank;
  failure.node = node;
  if (!line.empty()) failure.last_lines = {"before", line, "  "};
  return failure;
}

JobNeeds Limits(int retries, int user_retries = 0) {
  JobNeeds limits;
  limits.max_retries = retries;
  limits.max_user_retries = user_retries;
  return limits;
}

TEST(FailurePolicyTest, EveryReasonUsesTheBudgetOfItsDomain) {
  for (const FailureReason reason : AllFailureReasons()) {
    if (reason == FailureReason::kNone) continue;
    const RetryVerdict verdict = JudgeFailure(Limits(1, 1), {}, Failure(reason), {true, 0});
    const FailureDomain domain = DomainOf(reason);
    const bool infra =
        domain == FailureDomain::kInfrastructure || domain == FailureDomain::kHardware;
    EXPECT_EQ(verdict.retry, domain != FailureDomain::kFinal) << Name(reason);
    EXPECT_EQ(verdict.state.retries_used, infra ? 1 : 0) << Name(reason);
    EXPECT_EQ(verdict.state.user_retries_used, domain == FailureDomain::kUser) << Name(reason);
    // Without a budget only orders are followed by another attempt.
    EXPECT_EQ(JudgeFailure(Limits(0), {}, Failure(reason), {true, 0}).retry,
              domain == FailureDomain::kOrder)
        << Name(reason);
  }
}

TEST(FailurePolicyTest, StopsAfterThreeAttemptsWithoutProgress) {
  RetryState state;
  const FailureRecord failure = Failure(FailureReason::kNodeLost);
  for (int attempt = 1; attempt <= 2; ++attempt) {
    const RetryVerdict verdict = JudgeFailure(Limits(20), state, failure, {true, 0});
    EXPECT_TRUE(verdict.retry);
    EXPECT_EQ(verdict.waits, attempt - 1) << "the backoff grows";
    state = verdict.state;
  }
  const RetryVerdict verdict = JudgeFailure(Limits(20), state, failure, {true, 0});
  EXPECT_FALSE(verdict.retry);
  EXPECT_THAT(verdict.sentence, HasSubstr("3 attempts in a row"));
}

TEST(FailurePolicyTest, OnlyAStepNeverCommittedBeforeGivesTheBudgetsBack) {
  RetryState spent;
  spent.retries_used = 2;
  spent.no_progress = 2;
  spent.progress_step = 50;
  spent.avoided = {"bad"};
  const FailureRecord failure = Failure(FailureReason::kTrainerSignal);
  RetryVerdict verdict = JudgeFailure(Limits(2), spent, failure, {true, 50});
  EXPECT_FALSE(verdict.retry) << "the same step again is no progress";
  verdict = JudgeFailure(Limits(2), spent, failure, {true, 60});
  EXPECT_TRUE(verdict.retry);
  EXPECT_EQ(verdict.state.retries_used, 1);
  EXPECT_EQ(verdict.state.no_progress, 0);
  EXPECT_EQ(verdict.state.progress_step, 60);
  EXPECT_THAT(verdict.state.avoided, ElementsAre("bad"));
}

TEST(FailurePolicyTest, TheSameFailureTwiceWithoutProgressStopsEarly) {
  const auto fail = [](const RetryState& state, const std::string& line, int64_t committed) {
    return JudgeFailure(Limits(20), state, Failure(FailureReason::kTrainerExit, line),
                        {true, committed});
  };
  const RetryVerdict first = fail({}, "RuntimeError: shape 17 at 0x7f31", 0);
  EXPECT_TRUE(first.retry);
  EXPECT_FALSE(fail(first.state, "RuntimeError: shape 18 at 0x9f55", 0).retry);
  EXPECT_TRUE(fail(first.state, "another error", 0).retry);
  EXPECT_TRUE(fail(first.state, "RuntimeError: shape 17 at 0x7f31", 10).retry) << "it progressed";
}

TEST(FailurePolicyTest, FailuresFromOutsideHaveNoFingerprint) {
  FailureRecord killed = Failure(FailureReason::kTrainerSignal, "step 12");
  killed.signal = 9;
  EXPECT_EQ(Fingerprint(killed), "");
  killed.signal = 11;
  EXPECT_EQ(Fingerprint(killed), "TRAINER_SIGNAL:step #");
  EXPECT_EQ(Fingerprint(Failure(FailureReason::kNodeLost)), "");
}

TEST(FailurePolicyTest, HardwareFailuresMarkTheirNode) {
  const RetryVerdict verdict =
      JudgeFailure(Limits(2), {}, Failure(FailureReason::kGpuXid, "", 3, "n7"), {true, 0});
  EXPECT_TRUE(verdict.retry);
  EXPECT_THAT(verdict.state.avoided, ElementsAre("n7"));
}

TEST(FailurePolicyTest, ALostNodeCostsNothingBeforeTheStart) {
  RetryState state;
  for (int32_t i = 0; i < kFreeFailures; ++i) {
    const RetryVerdict verdict =
        JudgeFailure(Limits(0), state, Failure(FailureReason::kNodeLost), {false, 0});
    EXPECT_TRUE(verdict.retry);
    EXPECT_EQ(verdict.waits, i) << "the backoff grows all the same";
    EXPECT_EQ(verdict.state.retries_used, 0);
    state = verdict.state;
  }
  EXPECT_FALSE(JudgeFailure(Limits(0), state, Failure(FailureReason::kNodeLost), {false, 0}).retry);
  EXPECT_TRUE(JudgeFailure(Limits(0), state, Failure(FailureReason::kNodeLost), {false, 7}).retry)
      << "a newer checkpoint gives them back";
}

TEST(FailurePolicyTest, NothingIsRetriedForEverWithoutProgress) {
  for (const FailureReason reason : AllFailureReasons()) {
    for (const bool started : {false, true}) {
      for (const bool falls_back : {false, true}) {
        RetryState state;
        int attempts = 0;
        while (attempts < 1000) {
          const RetryVerdict verdict =
              JudgeFailure(Limits(1000, 1000), state, Failure(reason), {started, 50, falls_back});
          ++attempts;
          if (!verdict.retry) break;
          state = verdict.state;
        }
        EXPECT_LE(attempts, 1 + kFreeFailures + JobNeeds().no_progress_limit) << Name(reason);
      }
    }
  }
}

TEST(FailurePolicyTest, TheCauseIsFoundWhateverArrivesFirst) {
  const FailureRecord cause = Failure(FailureReason::kTrainerSignal, "", 2, "b");
  const FailureRecord symptom = Failure(FailureReason::kNcclError, "", 0, "a");
  const FailureRecord forward = MergeFailures(cause, symptom);
  EXPECT_EQ(forward.rank, 2);
  ASSERT_EQ(forward.cascade.size(), 1u);
  EXPECT_EQ(forward.cascade[0].rank, 0);
  const FailureRecord backward = MergeFailures(symptom, cause);
  EXPECT_EQ(backward.rank, 2);
  ASSERT_EQ(backward.cascade.size(), 1u);
  EXPECT_EQ(backward.cascade[0].reason, FailureReason::kNcclError);
  EXPECT_EQ(MergeFailures(forward, symptom).cascade.size(), 1u) << "once each";
  EXPECT_EQ(MergeFailures(cause, cause), cause);
}

TEST(FailurePolicyTest, TheCascadeIsBounded) {
  FailureRecord merged = Failure(FailureReason::kOomHost, "", 0);
  for (int rank = 1; rank < 100; ++rank) {
    merged = MergeFailures(merged, Failure(FailureReason::kNcclError, "", rank));
  }
  EXPECT_EQ(merged.rank, 0);
  EXPECT_EQ(merged.cascade.size(), 16u);
}

TEST(FailurePolicyTest, BackoffDoublesUpToTenMinutes) {
  EXPECT_EQ(RetryBackoff(absl::Seconds(10), 0), absl::Seconds(10));
  EXPECT_EQ(RetryBackoff(absl::Seconds(10), 2), absl::Seconds(40));
  EXPECT_EQ(RetryBackoff(absl::Seconds(10), 50), absl::Minutes(10));
  EXPECT_EQ(RetryBackoff(absl::ZeroDuration(), 50), absl::ZeroDuration());
}

}  // namespace
}  // namespace switchyard
