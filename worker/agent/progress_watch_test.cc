#include "worker/agent/progress_watch.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

const ProgressLimits kLimits{absl::Seconds(10), absl::Minutes(30)};

TEST(ProgressWatchTest, PhasesHaveTheirOwnLimit) {
  ProgressWatch watch(kLimits, ProgressPhase::kStarting, absl::Seconds(100));
  EXPECT_EQ(watch.Deadline(), absl::Seconds(100) + absl::Minutes(30));
  for (const char* name : {"loading", "validating", "saving"}) {
    watch.OnPhase(ParsePhase(name), absl::Seconds(200));
    EXPECT_EQ(watch.Deadline(), absl::Seconds(200) + absl::Minutes(30)) << name;
  }
}

TEST(ProgressWatchTest, FirstStepMayTakeAsLongAsAPhase) {
  ProgressWatch watch(kLimits, ProgressPhase::kLoading, absl::ZeroDuration());
  watch.OnPhase(ProgressPhase::kTraining, absl::Seconds(5));
  EXPECT_EQ(watch.Deadline(), absl::Seconds(5) + absl::Minutes(30));
  watch.OnStep(absl::Seconds(100));
  EXPECT_EQ(watch.Deadline(), absl::Seconds(110)) << "the floor";
}

TEST(ProgressWatchTest, SlowStepsGetFiveTimesTheirUsualTime) {
  ProgressWatch watch(kLimits, ProgressPhase::kTraining, absl::ZeroDuration());
  absl::Duration now;
  for (int i = 0; i < 50; ++i) watch.OnStep(now += absl::Seconds(20));
  EXPECT_EQ(watch.Limit(), absl::Seconds(100));
  for (int i = 0; i < 127; ++i) watch.OnStep(now += absl::Seconds(1));
  watch.OnStep(now += absl::Seconds(9));
  EXPECT_EQ(watch.Limit(), absl::Seconds(10)) << "one very slow step does not blind the watch";
  watch.OnStep(now += absl::Seconds(9));
  EXPECT_EQ(watch.Limit(), absl::Seconds(45)) << "more of them are how the job is";
  for (int i = 0; i < 128; ++i) watch.OnStep(now += absl::Seconds(1));
  EXPECT_EQ(watch.Limit(), absl::Seconds(10));
  EXPECT_THAT(watch.Describe(now + absl::Seconds(11)),
              HasSubstr("no sign of progress for 11s while training, the limit is 10s"));
}

TEST(ProgressWatchTest, TimeOfOtherPhasesIsNoStepTime) {
  ProgressWatch watch(kLimits, ProgressPhase::kTraining, absl::ZeroDuration());
  watch.OnStep(absl::Seconds(1));
  watch.OnPhase(ProgressPhase::kSaving, absl::Seconds(2));
  watch.OnPhase(ProgressPhase::kTraining, absl::Seconds(500));
  watch.OnStep(absl::Seconds(501));
  EXPECT_EQ(watch.Limit(), absl::Seconds(10));
}

TEST(ProgressWatchTest, StepWithoutAPhaseIsTraining) {
  ProgressWatch watch(kLimits, ProgressPhase::kSaving, absl::ZeroDuration());
  watch.OnStep(absl::Seconds(1));
  EXPECT_EQ(watch.phase(), ProgressPhase::kTraining);
}

}  // namespace
}  // namespace switchyard
