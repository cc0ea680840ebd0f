#include "tests/bench/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status_matchers.h"

namespace switchyard::bench {
namespace {

TEST(BenchOptionsTest, ReadsFlagsInBothSpellings) {
  const auto options = ParseOptions({"step", "--micro-batch", "2,8", "--layout=exact",
                                     "--activation-memory", "offload", "--sequence", "128"});
  ASSERT_THAT(options, IsOk());
  EXPECT_EQ(options->command, Command::kStep);
  EXPECT_EQ(options->micro_batches, (std::vector<int64_t>{2, 8}));
  EXPECT_EQ(options->layout, StateLayout::kExact);
  EXPECT_EQ(options->activation_memory, ActivationMemory::kOffload);
  EXPECT_EQ(options->sequence, 128);
}

TEST(BenchOptionsTest, ReadsRanksAndPartsOfEp) {
  const auto options = ParseOptions({"ep", "--in-process", "4", "--parts", "layer,parity",
                                     "--dispatchers=push", "--blocks", "8,16"});
  ASSERT_THAT(options, IsOk());
  EXPECT_EQ(options->ep.ranks, 4);
  EXPECT_TRUE(options->ep.in_process);
  EXPECT_EQ(options->ep.parts, (std::vector<EpPart>{EpPart::kLayer, EpPart::kParity}));
  EXPECT_EQ(options->ep.dispatchers, (std::vector<DispatcherKind>{DispatcherKind::kPush}));
  EXPECT_EQ(options->ep.blocks, (std::vector<int64_t>{8, 16}));
}

TEST(BenchOptionsTest, KillsProcessesOnly) {
  EXPECT_THAT(ParseOptions({"ep", "--gpus", "2", "--kill-rank", "1"}), IsOk());
  EXPECT_THAT(ParseOptions({"ep", "--gpus", "2", "--kill-rank", "2"}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseOptions({"ep", "--in-process", "2", "--kill-rank", "1"}),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(BenchOptionsTest, TakesNamesAfterKernelsOnly) {
  const auto options = ParseOptions({"kernels", "rope", "adamw"});
  ASSERT_THAT(options, IsOk());
  EXPECT_EQ(options->kernels, (std::vector<std::string>{"rope", "adamw"}));
  EXPECT_THAT(ParseOptions({"step", "rope"}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(BenchOptionsTest, NamesWhatItDoesNotKnow) {
  for (const std::vector<std::string>& wrong :
       std::vector<std::vector<std::string>>{{},
                                             {"--layers", "4"},
                                             {"fly"},
                                             {"step", "--layer", "4"},
                                             {"step", "--layers", "0"},
                                             {"step", "--micro-batch", "1,x"},
                                             {"step", "--layout", "4B"}}) {
    EXPECT_THAT(ParseOptions(wrong), StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_THAT(ParseOptions({"step", "--layer", "4"}).status().message(),
              testing::HasSubstr("did you mean --layers"));
  EXPECT_THAT(ShapeByName("qwen4", 4), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace switchyard::bench
