#include "server/store/writer.h"

#include <stdlib.h>

#include <filesystem>
#include <thread>

#include "absl/strings/match.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/error.h"
#include "server/store/store.h"

namespace switchyard {
namespace {

// A store whose statements fail as `fault_` says.
class WriterTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "writer_test.XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    Open();
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::remove_all(folder_);
  }

  void Open() {
    StoreOptions options;
    options.folder = folder_;
    options.inline_writes = true;
    options.statement_hook = [this](absl::string_view sql) {
      return absl::StartsWith(sql, fault_at_) ? fault_ : absl::OkStatus();
    };
    options.on_fatal = [this](const absl::Status& status) { fatal_ = status; };
    absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(std::move(options), clock_);
    ASSERT_THAT(store, IsOk());
    store_ = *std::move(store);
    store_->Subscribe([this](const ChangeSet&) {
      ++num_told_;
      told_on_ = std::this_thread::get_id();
    });
  }
  absl::Status Create(const std::string& name) {
    JobRecord job;
    job.id = JobId("projects/p/jobs/" + name);
    job.uid = name;
    job.project = "p";
    return store_->CreateJob(job, {}).status();
  }

  SimClock clock_;
  std::string folder_;
  std::string fault_at_;
  absl::Status fault_;
  absl::Status fatal_;
  int num_told_ = 0;
  std::thread::id told_on_;
  std::unique_ptr<Store> store_;
};

TEST_F(WriterTest, InlineWritesRunOnTheCallersThread) {
  ASSERT_THAT(Create("a"), IsOk());
  EXPECT_EQ(num_told_, 1);
  EXPECT_EQ(told_on_, std::this_thread::get_id());
}

TEST_F(WriterTest, AFullDiskStoresNothingAndTellsNobody) {
  for (const char* at : {"INSERT INTO events", "RELEASE", "COMMIT"}) {
    fault_at_ = at;
    fault_ = absl::ResourceExhaustedError("database: disk full");
    const absl::Status refused = Create("a");
    EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted)) << at;
    EXPECT_EQ(GetErrorDetails(refused).reason, "STORAGE_READ_ONLY");
    EXPECT_EQ(num_told_, 0);
    fault_ = absl::OkStatus();
    EXPECT_THAT(store_->GetJob(JobId("projects/p/jobs/a")), StatusIs(absl::StatusCode::kNotFound));
  }
  EXPECT_THAT(Create("a"), IsOk());
  EXPECT_EQ(num_told_, 1);
}

TEST_F(WriterTest, StorageThatFailedIsNotUsedAgain) {
  ASSERT_THAT(Create("a"), IsOk());
  fault_at_ = "COMMIT";
  fault_ = absl::DataLossError("database: disk I/O error");
  EXPECT_THAT(Create("b"), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(fatal_, fault_);
  fault_ = absl::OkStatus();
  EXPECT_THAT(Create("c"), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(num_told_, 1);
  // The next process finds what was committed before.
  store_.reset();
  Open();
  EXPECT_THAT(store_->GetJob(JobId("projects/p/jobs/a")), IsOk());
  EXPECT_THAT(store_->GetJob(JobId("projects/p/jobs/b")), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(Create("c"), IsOk());
}

}  // namespace
}  // namespace switchyard
