#include "server/retention.h"

#include <cmath>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// Committed in this order.
std::vector<CheckpointRecord> Steps(const std::vector<int64_t>& steps,
                                    const std::vector<double>& losses = {}) {
  std::vector<CheckpointRecord> out;
  for (size_t i = 0; i < steps.size(); ++i) {
    CheckpointRecord c;
    c.step = steps[i];
    c.commit_seq = static_cast<int64_t>(i) + 1;
    c.state = CheckpointState::kCommitted;
    if (i < losses.size()) c.validation_loss = losses[i];
    out.push_back(c);
  }
  return out;
}

std::vector<int64_t> Retired(const RetentionRule& rule, std::vector<CheckpointRecord> committed) {
  std::vector<int64_t> out;
  for (const CheckpointRecord& c : ChooseRetired(rule, std::move(committed))) {
    out.push_back(c.step);
  }
  return out;
}

TEST(RetentionTest, WithoutALimitAllAreKept) {
  EXPECT_THAT(Retired({0, 0, 0}, Steps({1, 2, 3})), IsEmpty());
  EXPECT_THAT(Retired({0, 2, 1}, Steps({1, 2, 3})), IsEmpty());
  EXPECT_THAT(Retired({3, 0, 0}, Steps({1, 2, 3})), IsEmpty());
}

TEST(RetentionTest, TheLastCommittedAreKeptWhateverTheirSteps) {
  EXPECT_THAT(Retired({2, 0, 0}, Steps({5, 10, 15, 20})), ElementsAre(5, 10));
  EXPECT_THAT(Retired({1, 0, 0}, Steps({10, 20, 12})), ElementsAre(10, 20));
}

TEST(RetentionTest, MilestonesStay) {
  EXPECT_THAT(Retired({1, 20, 0}, Steps({5, 10, 20, 25, 40, 45, 50})), ElementsAre(5, 10, 25, 45));
}

TEST(RetentionTest, TheBestByValidationStay) {
  EXPECT_THAT(Retired({1, 0, 1}, Steps({1, 2, 3, 4}, {3.0, 2.0, 2.5, 2.7})), ElementsAre(1, 3));
  EXPECT_THAT(Retired({1, 0, 2}, Steps({1, 2, 3, 4}, {3.0, 2.0, 2.5, 2.7})), ElementsAre(1));
  // Of two that are equal the later one.
  EXPECT_THAT(Retired({1, 0, 1}, Steps({1, 2, 3, 4}, {2.0, 2.0, 2.5, 2.7})), ElementsAre(1, 3));
  // The best may be among the last.
  EXPECT_THAT(Retired({1, 0, 1}, Steps({1, 2, 3}, {3.0, 2.5, 2.0})), ElementsAre(1, 2));
}

TEST(RetentionTest, OneWithoutAFiniteValidationLossIsNeverTheBest) {
  EXPECT_THAT(Retired({1, 0, 1}, Steps({1, 2, 3, 4}, {0, NAN, -INFINITY, 9})),
              ElementsAre(1, 2, 3));
}

TEST(RetentionTest, PinnedAndFinalOnesStay) {
  std::vector<CheckpointRecord> committed = Steps({1, 2, 3, 4});
  committed[0].pinned = true;
  committed[1].final = true;
  EXPECT_THAT(Retired({1, 0, 0}, committed), ElementsAre(3));
}

TEST(RetentionTest, HoldsItsPromisesForRandomHistories) {
  std::mt19937 random(7);
  const auto draw = [&](int64_t below) { return static_cast<int64_t>(random() % below); };
  for (int round = 0; round < 2000; ++round) {
    std::vector<int64_t> steps(1 + draw(12));
    std::vector<double> losses(steps.size());
    std::set<int64_t> used;
    for (size_t i = 0; i < steps.size(); ++i) {
      do {
        steps[i] = draw(60);
      } while (!used.insert(steps[i]).second);
      losses[i] = static_cast<double>(draw(4));  // 0: none
    }
    std::vector<CheckpointRecord> committed = Steps(steps, losses);
    for (CheckpointRecord& c : committed) c.pinned = draw(6) == 0;
    const RetentionRule rule{static_cast<int32_t>(draw(4)), draw(8), static_cast<int32_t>(draw(3))};
    std::set<int64_t> gone;
    for (int64_t step : Retired(rule, committed)) gone.insert(step);
    if (rule.keep_last == 0) {
      ASSERT_TRUE(gone.empty());
      continue;
    }
    // What was committed last, and what stays stays when it is asked again.
    for (size_t i = 0; i < steps.size(); ++i) {
      const bool last = i + rule.keep_last >= steps.size();
      const bool milestone = rule.keep_every > 0 && steps[i] % rule.keep_every == 0;
      if (last || milestone || committed[i].pinned) {
        ASSERT_EQ(gone.count(steps[i]), 0u) << steps[i];
      }
    }
    std::vector<CheckpointRecord> left;
    double best = INFINITY, best_left = INFINITY;
    for (const CheckpointRecord& c : committed) {
      if (c.validation_loss > 0) best = std::min(best, c.validation_loss);
      if (gone.count(c.step) > 0) continue;
      left.push_back(c);
      if (c.validation_loss > 0) best_left = std::min(best_left, c.validation_loss);
    }
    if (rule.keep_best > 0) {
      ASSERT_EQ(best, best_left);
    }
    ASSERT_THAT(Retired(rule, left), IsEmpty());
  }
}

}  // namespace
}  // namespace switchyard
