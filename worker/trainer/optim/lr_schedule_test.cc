#include "worker/trainer/optim/lr_schedule.h"

#include <cmath>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

void ExpectCurve(const LrSchedule& schedule, const std::vector<std::pair<int64_t, double>>& curve) {
  ASSERT_TRUE(ValidateLrSchedule(schedule).empty());
  for (const auto& [step, rate] : curve) {
    EXPECT_NEAR(LearningRate(schedule, step), rate, 1e-12) << "step " << step;
  }
}

TEST(LrScheduleTest, ConstantNeverChanges) {
  ExpectCurve({.lr = 0.5}, {{0, 0.5}, {1, 0.5}, {1000000, 0.5}});
}

TEST(LrScheduleTest, WarmUpGoesFromInitLrToLrInclusive) {
  ExpectCurve({.lr = 1.0, .init_lr = 0.2, .warmup_steps = 4},
              {{0, 0.2}, {1, 0.4}, {2, 0.6}, {3, 0.8}, {4, 1.0}, {5, 1.0}});
}

TEST(LrScheduleTest, LinearFallsToMinLrAndStaysThere) {
  ExpectCurve({.lr = 1.0, .min_lr = 0.1, .decay = LrDecay::kLinear, .decay_steps = 10},
              {{0, 1.0}, {1, 0.91}, {5, 0.55}, {9, 0.19}, {10, 0.1}, {11, 0.1}, {99, 0.1}});
}

TEST(LrScheduleTest, CosineAfterWarmUp) {
  ExpectCurve(
      {.lr = 1.0, .min_lr = 0.2, .decay = LrDecay::kCosine, .warmup_steps = 2, .decay_steps = 10},
      {{0, 0.0},
       {1, 0.5},
       {2, 1.0},
       {4, 0.2 + 0.8 * 0.5 * (std::cos(M_PI / 4) + 1)},
       {6, 0.6},
       {10, 0.2},
       {11, 0.2}});
}

TEST(LrScheduleTest, InverseSquareRootIsContinuousAtTheEndOfWarmUp) {
  ExpectCurve({.lr = 1.0,
               .min_lr = 0.3,
               .decay = LrDecay::kInverseSquareRoot,
               .warmup_steps = 4,
               .decay_steps = 100},
              {{2, 0.5}, {4, 1.0}, {16, 0.5}, {25, 0.4}, {64, 0.3}, {100, 0.3}, {101, 0.3}});
}

TEST(LrScheduleTest, InverseSquareRootWithoutWarmUpStartsAtLr) {
  ExpectCurve({.lr = 1.0, .decay = LrDecay::kInverseSquareRoot, .decay_steps = 100},
              {{0, 1.0}, {1, 1.0}, {4, 0.5}, {100, 0.1}, {101, 0.0}});
}

TEST(LrScheduleTest, WsdTails) {
  LrSchedule wsd{.lr = 1.0,
                 .min_lr = 0.0,
                 .decay = LrDecay::kWsd,
                 .warmup_steps = 2,
                 .decay_steps = 20,
                 .wsd_decay_steps = 4};
  const std::vector<std::pair<int64_t, double>> plateau = {
      {2, 1.0}, {3, 1.0}, {15, 1.0}, {16, 1.0}};
  const std::pair<WsdTail, std::vector<std::pair<int64_t, double>>> tails[] = {
      {WsdTail::kLinear, {{17, 0.75}, {18, 0.5}, {19, 0.25}, {20, 0.0}, {21, 0.0}}},
      {WsdTail::kCosine,
       {{17, 0.5 * (1 + std::sqrt(0.5))}, {18, 0.5}, {19, 0.5 * (1 - std::sqrt(0.5))}, {20, 0.0}}},
      {WsdTail::kExponential,
       {{17, 2 * std::pow(0.5, 0.25) - 1}, {18, 2 * std::sqrt(0.5) - 1}, {20, 0.0}}},
      {WsdTail::kMinusSqrt, {{17, 0.5}, {18, 1 - std::sqrt(0.5)}, {20, 0.0}}},
  };
  for (const auto& [tail, curve] : tails) {
    wsd.wsd_tail = tail;
    ExpectCurve(wsd, plateau);
    ExpectCurve(wsd, curve);
  }
}

TEST(LrScheduleTest, ValidateReportsAllFaults) {
  EXPECT_THAT(ValidateLrSchedule({.lr = -1,
                                  .decay = LrDecay::kWsd,
                                  .warmup_steps = 10,
                                  .decay_steps = 10,
                                  .wsd_decay_steps = 3}),
              ElementsAre(HasSubstr("lr is -1"), HasSubstr("min_lr 0 is above lr -1"),
                          HasSubstr("init_lr 0 is above lr -1"),
                          HasSubstr("decay_steps 10 must be more than warmup_steps 10"),
                          HasSubstr("wsd_decay_steps 3 must be between 1")));
}

}  // namespace
}  // namespace switchyard
