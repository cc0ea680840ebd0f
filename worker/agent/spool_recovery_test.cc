// A spool, its process dead, taken up by the next.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <random>
#include <string>

#include "base/clock.h"
#include "base/fd.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/agent/report_spool.h"
#include "worker/agent/spool_file.h"

namespace switchyard {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

const AttemptId kAttempt{JobId("projects/p/jobs/j"), 1};

// The disk takes no record while `full`.
class FullDisk final : public SpoolStorage {
 public:
  explicit FullDisk(SpoolStorage& disk) : disk_(disk) {}
  std::vector<std::string> Load() override { return disk_.Load(); }
  absl::Status Append(int64_t sequence, const std::string& record, bool sync) override {
    if (full) return absl::ResourceExhaustedError("full");
    return disk_.Append(sequence, record, sync);
  }
  void Release(int64_t sequence) override { disk_.Release(sequence); }

  bool full = false;

 private:
  SpoolStorage& disk_;
};

class SpoolRecoveryTest : public testing::Test {
 protected:
  SpoolRecoveryTest() {
    std::string pattern = testing::TempDir() + "/spool_test.XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    source_ = std::make_shared<const LogSource>(
        LogSource{kAttempt, 0, "stdout", folder_ + "/rank-0.stdout"});
    Restart();
  }
  ~SpoolRecoveryTest() override { std::filesystem::remove_all(folder_); }

  void Restart() {
    spool_.reset();
    auto storage = FileSpoolStorage::Open(folder_ + "/spool", segment_bytes_);
    ASSERT_THAT(storage, IsOk());
    storage_ = *std::move(storage);
    full_disk_ = std::make_unique<FullDisk>(*storage_);
    spool_ = std::make_unique<ReportSpool>(clock_, full_disk_.get(), base_);
    recovered_ = spool_->Recover([this](const AttemptId&, int, const std::string&) {
      return LogPiece{source_, 0, noted_};
    });
  }
  void AddStep(int64_t step) {
    v1::Report report;
    report.mutable_step()->set_step(step);
    spool_->Add(kAttempt, std::move(report), FrameOrigin{0, step * 100});
  }
  // Writes and notes; the position is stored only if `remember`.
  void AddLog(const std::string& text, bool remember = true) {
    log_ += text;
    ASSERT_THAT(ReplaceFile(source_->path, log_), IsOk());
    const int64_t begin = static_cast<int64_t>(log_.size() - text.size());
    spool_->AddLog(source_, begin, static_cast<int64_t>(text.size()));
    if (remember) noted_ = static_cast<int64_t>(log_.size());
  }
  static std::string Describe(const v1::Report& report) {
    std::string text = std::to_string(report.number()) + " ";
    if (report.has_step()) return text + "step " + std::to_string(report.step().step());
    if (report.has_log()) return text + "log " + report.log().data();
    if (report.has_log_gap()) return text + "gap " + std::to_string(report.log_gap().bytes());
    if (report.has_event()) return text + "event " + report.event().message();
    return text + "finished";
  }
  std::vector<std::string> Pending() {
    std::vector<std::string> words;
    for (const v1::Report& report : spool_->NextBatch(1 << 30)) words.push_back(Describe(report));
    return words;
  }

  SimClock clock_;
  std::string folder_;
  int64_t segment_bytes_ = FileSpoolStorage::kSegmentBytes;
  int64_t base_ = 0;
  std::shared_ptr<const LogSource> source_;
  std::string log_;
  int64_t noted_ = 0;
  std::unique_ptr<FileSpoolStorage> storage_;
  std::unique_ptr<FullDisk> full_disk_;
  std::unique_ptr<ReportSpool> spool_;
  RecoveredSpool recovered_;
};

TEST_F(SpoolRecoveryTest, UnacknowledgedReportsComeBackWithTheirNumbers) {
  AddStep(1);
  AddLog("abc");
  AddStep(2);
  AddLog("def");  // joins the piece before, which was not handed out
  spool_->Acknowledge(1);
  Restart();
  EXPECT_THAT(Pending(), ElementsAre("2 log abcdef", "3 step 2"));
  EXPECT_EQ((recovered_.frames[{kAttempt, 0}]), 200);
  AddStep(3);
  EXPECT_EQ(spool_->numbers().next, 5);
}

TEST_F(SpoolRecoveryTest, WhatWasHandedOutComesAgainUnchanged) {
  AddLog("abc");
  EXPECT_THAT(Pending(), ElementsAre("1 log abc"));
  AddLog("def");
  Restart();
  EXPECT_THAT(Pending(), ElementsAre("1 log abc", "2 log def"));
}

TEST_F(SpoolRecoveryTest, LogThatWasNotedButNotRememberedIsNotedOnce) {
  AddLog("abc");
  AddLog("def", /*remember=*/false);
  Restart();
  const int64_t noted = recovered_.logs[{kAttempt, 0, "stdout"}];
  EXPECT_EQ(noted, 3);
  spool_->AddLog(source_, noted, static_cast<int64_t>(log_.size()) - noted);
  EXPECT_THAT(Pending(), ElementsAre("1 log abc", "2 log def"));
}

TEST_F(SpoolRecoveryTest, LogThatWasSentButNotRememberedIsNotSentAgain) {
  AddLog("abc", /*remember=*/false);
  EXPECT_THAT(Pending(), ElementsAre("1 log abc"));
  Restart();
  EXPECT_EQ((recovered_.logs[{kAttempt, 0, "stdout"}]), 3);
  EXPECT_THAT(Pending(), ElementsAre("1 log abc"));
}

TEST_F(SpoolRecoveryTest, FinishedReportsAreKnown) {
  v1::Report report;
  report.mutable_finished()->set_succeeded(true);
  spool_->Add(kAttempt, report);
  Restart();
  EXPECT_THAT(recovered_.finished, ElementsAre(kAttempt));
  EXPECT_EQ(spool_->num_pending(kAttempt), 1);
  spool_->Acknowledge(1);
  Restart();
  EXPECT_THAT(recovered_.finished, IsEmpty());
  EXPECT_EQ(spool_->num_pending(), 0);
  AddStep(9);
  EXPECT_THAT(Pending(), ElementsAre("2 step 9"));
}

TEST_F(SpoolRecoveryTest, RebaseGivesTheOldestNumberOne) {
  for (int i = 1; i <= 5; ++i) AddStep(i);
  spool_->Acknowledge(3);
  base_ = spool_->Rebase();
  EXPECT_THAT(Pending(), ElementsAre("1 step 4", "2 step 5"));
  Restart();
  EXPECT_THAT(Pending(), ElementsAre("1 step 4", "2 step 5"));
  EXPECT_EQ(spool_->numbers().first, 1);
}

TEST_F(SpoolRecoveryTest, SegmentsGoWhenTheyAreAcknowledged) {
  segment_bytes_ = 1000;
  Restart();
  for (int i = 1; i <= 200; ++i) AddStep(i);
  const auto count = [&] {
    return std::distance(std::filesystem::directory_iterator(folder_ + "/spool"), {});
  };
  EXPECT_GT(count(), 5);
  spool_->Acknowledge(150);
  Restart();
  EXPECT_THAT(Pending(), SizeIs(50));
  spool_->Acknowledge(200);
  EXPECT_LE(count(), 2);
  Restart();
  EXPECT_EQ(spool_->num_pending(), 0);
  EXPECT_EQ(spool_->numbers().next, 201);
}

TEST_F(SpoolRecoveryTest, FullDiskDropsOldestLogsOnly) {
  AddLog("sent");
  Pending();
  AddStep(1);
  AddLog(std::string(100, 'x'));
  AddStep(2);
  AddLog("y");
  const std::vector<LogPiece> dropped = spool_->DropOldestLogs(1);
  ASSERT_THAT(dropped, SizeIs(1));
  EXPECT_EQ(dropped[0].offset, 4);
  EXPECT_EQ(dropped[0].size, 101) << "one piece: the later byte had joined it";
  EXPECT_EQ(spool_->dropped_log_bytes(), 101);
  AddLog("z");
  const auto expected = ElementsAre("1 log sent", "2 step 1", "3 gap 101", "4 step 2", "5 log z");
  EXPECT_THAT(Pending(), expected);
  Restart();
  EXPECT_THAT(Pending(), expected);
}

TEST_F(SpoolRecoveryTest, ReportsAreKeptOnceThereIsSpaceAgain) {
  AddStep(1);
  EXPECT_TRUE(spool_->all_kept());
  full_disk_->full = true;
  AddStep(2);
  EXPECT_FALSE(spool_->all_kept()) << "its frame must not be given up";
  full_disk_->full = false;
  AddStep(3);
  EXPECT_TRUE(spool_->all_kept());
  Restart();
  EXPECT_THAT(Pending(), ElementsAre("1 step 1", "2 step 2", "3 step 3"));
}

// The coordinator has them; only the file knows nothing of them.
TEST_F(SpoolRecoveryTest, ReportsThatWereAcknowledgedBeforeThereWasSpaceLeaveNoHole) {
  AddStep(1);
  full_disk_->full = true;
  for (int step = 2; step <= 4; ++step) AddStep(step);
  spool_->Acknowledge(3);
  EXPECT_FALSE(spool_->all_kept()) << "number 4";
  spool_->Acknowledge(4);
  EXPECT_TRUE(spool_->all_kept());
  full_disk_->full = false;
  AddStep(5);
  Restart();
  EXPECT_THAT(Pending(), ElementsAre("5 step 5"));
}

// Left by a machine that lost its power: what was not synced is gone, what was synced later is not.
TEST_F(SpoolRecoveryTest, ReportsBehindATornSegmentAreNotLost) {
  segment_bytes_ = 300;
  Restart();
  for (int step = 1; step <= 20; ++step) AddStep(step);
  v1::Report report;
  report.mutable_finished()->set_succeeded(true);
  spool_->Add(kAttempt, report);
  std::vector<std::filesystem::path> segments;
  for (const auto& entry : std::filesystem::directory_iterator(folder_ + "/spool")) {
    segments.push_back(entry.path());
  }
  std::sort(segments.begin(), segments.end());
  ASSERT_GE(segments.size(), 4u);
  std::filesystem::resize_file(segments[1], std::filesystem::file_size(segments[1]) / 2);
  Restart();
  EXPECT_THAT(recovered_.finished, ElementsAre(kAttempt));
  const std::vector<std::string> pending = Pending();
  ASSERT_THAT(pending, SizeIs(21)) << "each number is there";
  EXPECT_EQ(pending.front(), "1 step 1");
  EXPECT_EQ(pending[19], "20 step 20");
  EXPECT_EQ(pending[20], "21 finished");
  EXPECT_THAT(pending, Contains(HasSubstr("event the agent's spool was damaged")));
  spool_->Acknowledge(21);
  Restart();
  EXPECT_EQ(spool_->num_pending(), 0);
  EXPECT_EQ(spool_->numbers().next, 22);
}

// Whatever the instant of death, every report and every byte comes exactly once, in order.
TEST_F(SpoolRecoveryTest, RandomDeathsLoseAndDoubleNothing) {
  std::mt19937 random(7);
  segment_bytes_ = 400;
  Restart();
  std::vector<int64_t> steps;
  std::string log;
  int64_t next_number = 1;
  for (int64_t step = 1; step <= 2000;) {
    const unsigned dice = random() % 10;
    if (dice < 4) AddStep(step++);
    if (dice >= 4 && dice < 8) AddLog("line " + std::to_string(random() % 1000) + "\n");
    if (dice == 8) {
      // Stored by the coordinator; the acknowledgement may be lost with the process.
      const std::vector<v1::Report> batch = spool_->NextBatch(random() % 400);
      for (const v1::Report& report : batch) {
        if (report.number() < next_number) continue;
        ASSERT_EQ(report.number(), next_number++);
        if (report.has_step()) steps.push_back(report.step().step());
        if (report.has_log()) {
          ASSERT_EQ(report.log().offset(), static_cast<int64_t>(log.size()));
          log += report.log().data();
        }
      }
      if (random() % 2 == 0) spool_->Acknowledge(next_number - 1);
    }
    if (dice == 9) Restart();
  }
  for (const v1::Report& report : spool_->NextBatch(1 << 30)) {
    if (report.number() < next_number) continue;
    ASSERT_EQ(report.number(), next_number++);
    if (report.has_step()) steps.push_back(report.step().step());
    if (report.has_log()) log += report.log().data();
  }
  ASSERT_THAT(steps, SizeIs(2000));
  for (size_t i = 0; i < steps.size(); ++i) ASSERT_EQ(steps[i], static_cast<int64_t>(i) + 1);
  EXPECT_EQ(log, log_);
}

}  // namespace
}  // namespace switchyard
