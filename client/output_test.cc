#include "client/output.h"

#include "client/progress.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(OutputTest, TableColumnsAreAsWideAsTheirWidestCell) {
  EXPECT_EQ(Table({"A", "LONG"}, {{"wide cell", "x"}, {"é", "y"}}),
            "A          LONG\nwide cell  x\né          y\n");
}

TEST(OutputTest, NumbersAreForPeople) {
  EXPECT_EQ(HumanBytes(999), "999 B");
  EXPECT_EQ(HumanBytes(1500), "1.5 kB");
  EXPECT_EQ(HumanBytes(999999), "1.0 MB");
  EXPECT_EQ(HumanBytes(61064245248), "61.1 GB");
  EXPECT_EQ(HumanCount(999), "999");
  EXPECT_EQ(HumanCount(12345), "12.3k");
  EXPECT_EQ(HumanCount(3.5e9), "3.5G");
  EXPECT_EQ(HumanDuration(absl::Seconds(59)), "59s");
  EXPECT_EQ(HumanDuration(absl::Seconds(185)), "3m05s");
  EXPECT_EQ(HumanDuration(absl::Minutes(62)), "1h02m");
  EXPECT_EQ(HumanDuration(absl::Hours(49)), "2d01h");
}

TEST(OutputTest, YamlQuotesWhatWouldBeReadAsSomethingElse) {
  Json value;
  value["plain"] = "a-b_c";
  value["word"] = "true";
  value["number"] = "12";
  value["text"] = "a: b\nc";
  value["list"] = Json::array({1, Json::object({{"x", 1}, {"z", Json::array({2})}})});
  value["empty"] = Json::object();
  EXPECT_EQ(Print(value, Format::kYaml),
            "plain: a-b_c\nword: \"true\"\nnumber: \"12\"\ntext: \"a: b\\nc\"\n"
            "list:\n  - 1\n  - x: 1\n    z:\n      - 2\nempty: {}\n");
}

v1::StepMetrics Step() {
  v1::StepMetrics step;
  step.set_step(50);
  step.set_total_steps(100);
  step.set_loss(3.5);
  step.set_learning_rate(2e-4);
  step.set_tokens_per_second(12345);
  step.set_memory_bytes(2000000000);
  return step;
}

TEST(ProgressTest, BarFitsEveryWidth) {
  for (int width = 0; width < 200; ++width) {
    const std::string line = BarProgress(Step(), absl::Seconds(63), width);
    EXPECT_LT(static_cast<int>(line.size()), std::max(width, 1)) << line;
  }
  EXPECT_EQ(
      BarProgress(Step(), absl::Seconds(63), 200),
      "[===============>              ]  50/100  loss 3.5000  ETA 1m03s  12.3k tok/s  2.0 GB  "
      "lr 2.0e-04");
  EXPECT_EQ(BarProgress(Step(), absl::Seconds(63), 80),
            "[======>     ]  50/100  loss 3.5000  ETA 1m03s  12.3k tok/s  2.0 GB  lr 2.0e-04");
}

TEST(ProgressTest, NarrowLinesKeepWhatMattersMost) {
  const std::string line = BarProgress(Step(), absl::Seconds(63), 30);
  EXPECT_THAT(line, testing::StartsWith("50/100  loss 3.5000"));
  EXPECT_THAT(line, Not(HasSubstr("tok/s")));
}

TEST(ProgressTest, SkippedStepsAreMarked) {
  v1::StepMetrics step = Step();
  step.set_skipped(true);
  EXPECT_THAT(PlainProgress(step, absl::ZeroDuration()), HasSubstr("skipped"));
}

TEST(ProgressTest, TimeLeftFollowsTheAveragePaceOfTheAttempt) {
  TimeLeft left;
  v1::StepMetrics step = Step();
  step.set_attempt(1);
  step.set_step(1);
  step.set_step_seconds(2);
  EXPECT_EQ(left.After(step), absl::Seconds(198));
  step.set_step(2);
  step.set_step_seconds(4);
  EXPECT_EQ(left.After(step), absl::Seconds(294));
  step.set_step(1);
  step.set_attempt(2);
  step.set_step_seconds(1);
  EXPECT_EQ(left.After(step), absl::Seconds(99));
  step.set_step(100);
  EXPECT_EQ(left.After(step), absl::ZeroDuration());
}

}  // namespace
}  // namespace switchyard
