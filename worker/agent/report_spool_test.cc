#include "worker/agent/report_spool.h"

#include <fstream>
#include <string>

#include "base/fd.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

const AttemptId kFirst{JobId("projects/p/jobs/a"), 1};
const AttemptId kSecond{JobId("projects/p/jobs/b"), 2};
constexpr int64_t kAll = 1 << 30;

v1::Report Event(const std::string& message) {
  v1::Report report;
  report.mutable_event()->set_message(message);
  return report;
}

class ReportSpoolTest : public testing::Test {
 protected:
  // A log file with `size` bytes that differ.
  std::shared_ptr<const LogSource> MakeLog(const std::string& stream, size_t size) {
    LogSource source{kFirst, 3, stream, testing::TempDir() + "/report_spool_test." + stream};
    std::string data;
    while (data.size() < size) data += std::to_string(data.size()) + "\n";
    data.resize(size);
    EXPECT_THAT(ReplaceFile(source.path, data), IsOk());
    data_ = data;
    return std::make_shared<const LogSource>(source);
  }

  SimClock clock_;
  ReportSpool spool_{clock_};
  std::string data_;
};

TEST_F(ReportSpoolTest, NumbersFromOneAndRepeatsUntilAcknowledged) {
  spool_.Add(kFirst, Event("a"));
  spool_.Add(kSecond, Event("b"));
  for (int i = 0; i < 2; ++i) {
    const std::vector<v1::Report> batch = spool_.NextBatch(kAll);
    ASSERT_EQ(batch.size(), 2u);
    EXPECT_EQ(batch[0].number(), 1);
    EXPECT_EQ(batch[0].job(), "projects/p/jobs/a");
    EXPECT_EQ(batch[0].attempt(), 1);
    EXPECT_EQ(batch[0].event().message(), "a");
    EXPECT_EQ(batch[0].time().seconds(), absl::ToUnixSeconds(clock_.Now()));
    EXPECT_EQ(batch[1].number(), 2);
  }
  spool_.Acknowledge(1);
  ASSERT_EQ(spool_.NextBatch(kAll).size(), 1u);
  EXPECT_EQ(spool_.NextBatch(kAll)[0].number(), 2);
  EXPECT_EQ(spool_.num_pending(kFirst), 0);
  EXPECT_EQ(spool_.num_pending(kSecond), 1);
  EXPECT_FALSE(spool_.WaitUntilEmpty(absl::ZeroDuration()));
  spool_.Acknowledge(7);
  EXPECT_TRUE(spool_.WaitUntilEmpty(absl::ZeroDuration()));
  EXPECT_FALSE(spool_.WaitForReports(absl::ZeroDuration()));
  spool_.Add(kFirst, Event("c"));
  EXPECT_EQ(spool_.NextBatch(kAll)[0].number(), 3);
}

TEST_F(ReportSpoolTest, BatchesAreBoundedButNeverEmpty) {
  for (int i = 0; i < 10; ++i) spool_.Add(kFirst, Event(std::string(1000, 'x')));
  EXPECT_EQ(spool_.NextBatch(1).size(), 1u);
  EXPECT_EQ(spool_.NextBatch(3500).size(), 3u);
}

TEST_F(ReportSpoolTest, JoinsLogBytesUntilHandedOut) {
  const auto log = MakeLog("stdout", 1000);
  spool_.AddLog(log, 0, 10);
  spool_.Add(kFirst, Event("between"));
  spool_.AddLog(log, 10, 90);
  std::vector<v1::Report> batch = spool_.NextBatch(kAll);
  ASSERT_EQ(batch.size(), 2u);
  EXPECT_EQ(batch[0].log().data(), data_.substr(0, 100));
  EXPECT_EQ(batch[0].log().rank(), 3);
  EXPECT_EQ(batch[0].log().stream(), "stdout");

  spool_.AddLog(log, 100, 50);  // the first piece may be on its way already
  batch = spool_.NextBatch(kAll);
  ASSERT_EQ(batch.size(), 3u);
  EXPECT_EQ(batch[0].log().data(), data_.substr(0, 100));
  EXPECT_EQ(batch[2].log().offset(), 100);
  EXPECT_EQ(batch[2].log().data(), data_.substr(100, 50));

  spool_.Acknowledge(3);
  spool_.AddLog(log, 150, 5);
  batch = spool_.NextBatch(kAll);
  ASSERT_EQ(batch.size(), 1u);
  EXPECT_EQ(batch[0].log().data(), data_.substr(150, 5));
}

TEST_F(ReportSpoolTest, SplitsLongLogs) {
  const int64_t size = 2 * ReportSpool::kMaxChunkBytes + 5;
  const auto log = MakeLog("stderr", static_cast<size_t>(size));
  spool_.AddLog(log, 0, size);
  std::string joined;
  for (const v1::Report& report : spool_.NextBatch(kAll)) {
    EXPECT_EQ(report.log().offset(), static_cast<int64_t>(joined.size()));
    EXPECT_LE(static_cast<int64_t>(report.log().data().size()), ReportSpool::kMaxChunkBytes);
    joined += report.log().data();
  }
  EXPECT_EQ(joined, data_);
}

TEST_F(ReportSpoolTest, StreamsDoNotMix) {
  const auto out = MakeLog("stdout", 100);
  const auto err = MakeLog("stderr", 100);
  spool_.AddLog(out, 0, 1);
  spool_.AddLog(err, 0, 1);
  spool_.AddLog(out, 1, 1);
  const std::vector<v1::Report> batch = spool_.NextBatch(kAll);
  ASSERT_EQ(batch.size(), 2u);
  EXPECT_EQ(batch[0].log().stream(), "stdout");
  EXPECT_EQ(batch[0].log().data().size(), 2u);
  EXPECT_EQ(batch[1].log().stream(), "stderr");
}

}  // namespace
}  // namespace switchyard
