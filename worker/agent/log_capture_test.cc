#include "worker/agent/log_capture.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(LastLinesTest, KeepsTheEnd) {
  EXPECT_THAT(LastLines("", 20), IsEmpty());
  EXPECT_THAT(LastLines("\n\n", 20), IsEmpty());
  EXPECT_THAT(LastLines("a\nb\nc\n", 2), ElementsAre("b", "c"));
  EXPECT_THAT(LastLines("a\n\nc", 20), ElementsAre("a", "", "c"));
  EXPECT_EQ(LastLines(std::string(5000, 'x'), 20)[0].size(), 1000u);
}

TEST(LastLinesTest, RepairsBytesThatAreNoText) {
  EXPECT_THAT(LastLines("ok \xff\xfe end", 1), ElementsAre("ok \xEF\xBF\xBD\xEF\xBF\xBD end"));
}

class LogCaptureTest : public testing::Test {
 protected:
  std::unique_ptr<LogCapture> Open(const std::string& path) {
    absl::StatusOr<Pipe> pipe = MakePipe();
    EXPECT_THAT(pipe, IsOk());
    write_ = std::move(pipe->write);
    ::fcntl(pipe->read.get(), F_SETFL, O_NONBLOCK);
    auto log =
        LogCapture::Open(std::move(pipe->read),
                         {{JobId("projects/p/jobs/j"), 1}, 0, "stdout", path}, spool_, &noted_);
    EXPECT_THAT(log, IsOk());
    return *std::move(log);
  }
  void Write(absl::string_view text) { ASSERT_THAT(WriteAll(write_.get(), text, "pipe"), IsOk()); }
  std::string Reported() {
    std::string text;
    for (const v1::Report& report : spool_.NextBatch(1 << 30)) {
      EXPECT_EQ(report.log().offset(), static_cast<int64_t>(text.size()));
      text += report.log().data();
    }
    return text;
  }

  ReportSpool spool_{RealClock::Get()};
  std::atomic<int64_t> noted_{0};
  UniqueFd write_;
};

TEST_F(LogCaptureTest, KeepsBytesInFileAndSpool) {
  std::string folder = testing::TempDir() + "/log_capture_test.XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const std::string path = folder + "/log";
  auto log = Open(path);
  Write(absl::string_view("a\0b\xff", 4));
  log->Drain(1 << 20);
  EXPECT_FALSE(log->at_end());
  Write("more");
  write_.Reset();
  log->Drain(1 << 20);
  EXPECT_TRUE(log->at_end());
  EXPECT_EQ(ReadFile(path).value(), std::string("a\0b\xffmore", 8));
  EXPECT_EQ(Reported(), std::string("a\0b\xffmore", 8));
  EXPECT_EQ(log->tail(), std::string("a\0b\xffmore", 8));
  EXPECT_EQ(noted_.load(), 8);

  // Another process goes on behind it.
  log = Open(path);
  Write("again");
  write_.Reset();
  log->Drain(1 << 20);
  EXPECT_EQ(Reported(), std::string("a\0b\xffmoreagain", 13));
  EXPECT_EQ(log->ReadAll().value(), "again");
  std::filesystem::remove_all(folder);
}

TEST_F(LogCaptureTest, FullDiskLosesNoByte) {
  const auto log = Open("/dev/full");
  Write("first ");
  log->Drain(1 << 20);
  Write("second");
  log->Drain(1 << 20);
  EXPECT_EQ(Reported(), "first second");
}

}  // namespace
}  // namespace switchyard
