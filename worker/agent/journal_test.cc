#include "worker/agent/journal.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "base/failpoint.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Kind = JournalRecord::Kind;

AttemptId Id(int number) { return {JobId("projects/p/jobs/j"), number}; }

class FileTest : public testing::Test {
 protected:
  FileTest() {
    std::string pattern = testing::TempDir() + "/journal_test.XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  ~FileTest() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
};

using RecordFileTest = FileTest;

TEST_F(RecordFileTest, TornEndIsCutOffAndWritingGoesOn) {
  const std::string path = folder_ + "/records";
  std::string whole;
  for (const char* payload : {"first", "second", ""}) whole += EncodeRecord(payload);
  for (size_t cut = 0; cut <= whole.size(); ++cut) {
    ASSERT_THAT(ReplaceFile(path, whole.substr(0, cut)), IsOk());
    std::vector<std::string> records;
    {
      auto file = RecordFile::Open(path, &records);
      ASSERT_THAT(file, IsOk());
      ASSERT_THAT((*file)->AppendSynced("new"), IsOk());
    }
    std::vector<std::string> expected = {"first", "second", ""};
    expected.resize(records.size());
    EXPECT_EQ(records, expected) << cut;
    expected.push_back("new");
    std::vector<std::string> again;
    ASSERT_THAT(RecordFile::Open(path, &again), IsOk());
    EXPECT_EQ(again, expected) << cut;
  }
}

TEST_F(RecordFileTest, FlippedBitEndsTheFile) {
  const std::string path = folder_ + "/records";
  std::string text = EncodeRecord("first") + EncodeRecord("second");
  text[text.size() - 2] ^= 1;
  ASSERT_THAT(ReplaceFile(path, text), IsOk());
  std::vector<std::string> records;
  ASSERT_THAT(RecordFile::Open(path, &records), IsOk());
  EXPECT_THAT(records, ElementsAre("first"));
}

TEST_F(RecordFileTest, FullDiskLeavesTheFileAsItWas) {
  const std::string path = folder_ + "/records";
  std::vector<std::string> records;
  auto file = RecordFile::Open(path, &records);
  ASSERT_THAT(file, IsOk());
  ASSERT_THAT((*file)->Append("first"), IsOk());
  // A disk without space is a file that may not grow: a part of the record fits.
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  rlimit limit = before;
  limit.rlim_cur = static_cast<rlim_t>((*file)->size_bytes() + 100);
  ::setrlimit(RLIMIT_FSIZE, &limit);
  const absl::Status failed = (*file)->Append(std::string(1000, 'x'));
  ::setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_FALSE(failed.ok());
  ASSERT_THAT((*file)->Append("second"), IsOk());
  records.clear();
  ASSERT_THAT(RecordFile::Open(path, &records), IsOk());
  EXPECT_THAT(records, ElementsAre("first", "second"));
}

// Else an order would be refused now and carried out by the agent's next life.
TEST_F(RecordFileTest, WhatCannotBeSyncedIsNotThere) {
  const std::string path = folder_ + "/records";
  std::vector<std::string> records;
  auto file = RecordFile::Open(path, &records, /*reserve_bytes=*/1 << 20);
  ASSERT_THAT(file, IsOk());
  ASSERT_THAT((*file)->AppendSynced("first"), IsOk());
  ASSERT_THAT(ArmFailpoints("agent.record.before_sync=error(EIO)@1"), IsOk());
  EXPECT_FALSE((*file)->AppendSynced("refused").ok());
  ASSERT_THAT(RecordFile::Open(path, &records), IsOk());
  EXPECT_THAT(records, ElementsAre("first"));
  ASSERT_THAT((*file)->AppendSynced("second"), IsOk());
  records.clear();
  ASSERT_THAT(RecordFile::Open(path, &records), IsOk());
  EXPECT_THAT(records, ElementsAre("first", "second"));
}

using FileJournalTest = FileTest;

TEST_F(FileJournalTest, RemembersOrdersUntilTheyAreForgotten) {
  const std::string path = folder_ + "/journal";
  v1::Assign assign;
  assign.set_job("projects/p/jobs/j");
  assign.set_attempt(2);
  v1::Stop stop;
  stop.set_reason("enough");
  {
    AgentMemory memory;
    auto journal = FileJournal::Open(path, &memory);
    ASSERT_THAT(journal, IsOk());
    EXPECT_THAT(memory.attempts, IsEmpty());
    ASSERT_THAT(
        (*journal)->Append({Kind::kAssign, Id(2), absl::Seconds(1), assign.SerializeAsString()}),
        IsOk());
    ASSERT_THAT(
        (*journal)->Append({Kind::kStop, Id(2), absl::Seconds(7), stop.SerializeAsString()}),
        IsOk());
  }
  AgentMemory memory;
  auto journal = FileJournal::Open(path, &memory);
  ASSERT_THAT(journal, IsOk());
  ASSERT_EQ(memory.attempts.count(Id(2)), 1u);
  EXPECT_EQ(memory.attempts.at(Id(2)).assign.attempt(), 2);
  EXPECT_FALSE(memory.attempts.at(Id(2)).start.has_value());
  EXPECT_EQ(memory.attempts.at(Id(2)).stop->reason(), "enough");
  EXPECT_EQ(memory.attempts.at(Id(2)).stop_time, absl::Seconds(7));
  ASSERT_THAT((*journal)->Append({Kind::kForget, Id(2), absl::ZeroDuration(), ""}), IsOk());
  AgentMemory last;
  ASSERT_THAT(FileJournal::Open(path, &last), IsOk());
  EXPECT_THAT(last.attempts, IsEmpty());
  EXPECT_EQ(last.highest_attempt.at(Id(2).job), 2) << "the fence stays";
}

TEST_F(FileJournalTest, RecordsPutTheMemoryTogetherAgain) {
  AgentMemory memory;
  v1::Assign assign;
  assign.set_attempt(3);
  memory.Apply({Kind::kFence, Id(1), absl::ZeroDuration(), ""});
  memory.Apply({Kind::kAssign, Id(3), absl::ZeroDuration(), assign.SerializeAsString()});
  memory.Apply({Kind::kStart, Id(3), absl::ZeroDuration(), ""});
  AgentMemory copy;
  for (const JournalRecord& record : memory.Records()) {
    const absl::StatusOr<JournalRecord> decoded = DecodeJournalRecord(EncodeJournalRecord(record));
    ASSERT_THAT(decoded, IsOk());
    copy.Apply(*decoded);
  }
  EXPECT_EQ(copy.highest_attempt, memory.highest_attempt);
  ASSERT_EQ(copy.attempts.size(), 1u);
  EXPECT_TRUE(copy.attempts.at(Id(3)).start.has_value());
}

TEST_F(FileJournalTest, NonsenseIsRefused) {
  EXPECT_THAT(DecodeJournalRecord(""), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(DecodeJournalRecord(std::string(17, '\x7f')),
              StatusIs(absl::StatusCode::kInvalidArgument));
  const std::string path = folder_ + "/journal";
  ASSERT_THAT(ReplaceFile(path, EncodeRecord("no journal")), IsOk());
  AgentMemory memory;
  EXPECT_THAT(FileJournal::Open(path, &memory), StatusIs(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace switchyard
