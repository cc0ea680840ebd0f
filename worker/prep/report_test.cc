#include "worker/prep/report.h"

#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(ReportTest, HistogramHasNoGapsAndCountsEachLengthOnce) {
  DatasetReport report;
  for (const int64_t tokens : {100, 17, 16, 1, 700, 64, 65}) AddLength(&report, tokens);
  const std::vector<std::pair<int64_t, int64_t>> expected = {{16, 2},  {32, 1},  {64, 1},  {128, 2},
                                                             {256, 0}, {512, 0}, {1024, 1}};
  EXPECT_EQ(report.length_histogram, expected);
  EXPECT_EQ(report.longest, 700);
}

TEST(ReportTest, PaddingSharesFollowFromCounts) {
  DatasetReport report;
  EXPECT_EQ(report.PaddingUnpacked(), 0.0);
  EXPECT_EQ(report.RowFill(), 0.0);
  report.documents = 4;
  report.longest_kept = 10;
  report.tokens = 30;
  report.packed_rows = 2;
  report.row_length = 16;
  EXPECT_DOUBLE_EQ(report.PaddingUnpacked(), 0.25);
  EXPECT_DOUBLE_EQ(report.RowFill(), 30.0 / 32.0);
}

}  // namespace
}  // namespace switchyard
