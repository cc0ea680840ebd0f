#include "server/artifacts/publisher.h"

#include <filesystem>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/status_matchers.h"
#include "base/thread.h"
#include "server/artifacts/publisher_testing.h"
#include "server/store/artifact_root.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

TEST_F(PublisherTest, CallsAtTheSameTimePublishOnce) {
  // An agent whose connection broke asks again while its first call is still being carried out.
  for (int64_t step = 1; step <= 20; ++step) {
    const CommitRequest request = Write(step);
    std::vector<absl::Status> results(2);
    {
      std::vector<Thread> threads;
      for (absl::Status& result : results) {
        threads.emplace_back(
            "commit", [&](const StopToken&) { result = publisher_->Commit(request).status(); });
      }
    }
    for (const absl::Status& result : results) EXPECT_THAT(result, IsOk()) << "step " << step;
    EXPECT_THAT(ReadFile(Final(step) + "/model.safetensors"), IsOk()) << "step " << step;
  }
  EXPECT_THAT(Rows(CheckpointState::kCommitted), SizeIs(20));
}

TEST_F(PublisherTest, RecoversAPublicationCutBeforeTheRename) {
  BeginOnly(Write(5));
  ASSERT_THAT(publisher_->Recover(), IsOk());
  ASSERT_THAT(Rows(CheckpointState::kCommitted), SizeIs(1));
  EXPECT_EQ(Rows(CheckpointState::kCommitted)[0].path, Final(5));
  EXPECT_THAT(ReadFile(Final(5) + "/model.safetensors"), IsOk());
  EXPECT_FALSE(std::filesystem::exists(Staging(5)));
  EXPECT_THAT(LastEvent(), HasSubstr("committed"));
}

TEST_F(PublisherTest, RecoversAPublicationCutAfterTheRename) {
  BeginOnly(Write(5));
  ASSERT_THAT(MakeFolders(root_ + "/p/j/checkpoints"), IsOk());
  std::filesystem::rename(Staging(5), Final(5));
  ASSERT_THAT(publisher_->Recover(), IsOk());
  ASSERT_THAT(Rows(CheckpointState::kCommitted), SizeIs(1));
  EXPECT_GT(Rows(CheckpointState::kCommitted)[0].size_bytes, 7);
  EXPECT_EQ(*publisher_->ResumePath(*store_->GetJob(job_)), Final(5));
}

TEST_F(PublisherTest, DropsAPublicationWhoseFilesAreGone) {
  BeginOnly(Write(5));
  std::filesystem::remove_all(Staging(5));
  ASSERT_THAT(publisher_->Recover(), IsOk());
  EXPECT_THAT(Rows(CheckpointState::kCommitting), IsEmpty());
  EXPECT_THAT(Rows(CheckpointState::kCommitted), IsEmpty());
  EXPECT_THAT(LastEvent(), HasSubstr("dropped"));
  EXPECT_EQ(*publisher_->ResumePath(*store_->GetJob(job_)), "");
}

TEST_F(PublisherTest, RecoveryPublishesOverALeftoverFolder) {
  // A deletion that did not finish left its folder where the new checkpoint belongs.
  ASSERT_THAT(MakeFolders(Final(5)), IsOk());
  ASSERT_THAT(ReplaceFile(Final(5) + "/model.safetensors", "old"), IsOk());
  BeginOnly(Write(5));
  ASSERT_THAT(publisher_->Recover(), IsOk());
  ASSERT_THAT(Rows(CheckpointState::kCommitted), SizeIs(1));
  EXPECT_EQ(ReadFile(Final(5) + "/model.safetensors").value_or(""), "weights");
}

TEST_F(PublisherTest, ResumesFromTheNewestCheckpointThatVerifies) {
  ASSERT_THAT(publisher_->Commit(Write(5)), IsOk());
  ASSERT_THAT(publisher_->Commit(Write(6)), IsOk());
  const JobRecord job = *store_->GetJob(job_);
  EXPECT_EQ(*publisher_->ResumePath(job), Final(6));
  ASSERT_THAT(ReplaceFile(Final(6) + "/model.safetensors", "wEights"), IsOk());  // a flipped bit
  EXPECT_EQ(*publisher_->ResumePath(job), Final(5));
}

TEST_F(PublisherTest, ADamagedCheckpointIsRejectedAndItsStepCommittedAgain) {
  ASSERT_THAT(publisher_->Commit(Write(5)), IsOk());
  ASSERT_THAT(publisher_->Commit(Write(6)), IsOk());
  const JobRecord job = *store_->GetJob(job_);
  ASSERT_THAT(ReplaceFile(Final(6) + "/model.safetensors", "wEights"), IsOk());
  EXPECT_EQ(*publisher_->ResumePath(job), Final(5));
  EXPECT_THAT(LastEvent(), testing::HasSubstr("CHECKPOINT_REJECTED: the checkpoint of step 6"));
  // The retry reaches the step again.
  ASSERT_THAT(publisher_->Commit(Write(6, "anew")), IsOk());
  EXPECT_EQ(*publisher_->ResumePath(job), Final(6));
  EXPECT_EQ(*ReadFile(Final(6) + "/model.safetensors"), "anew");
}

TEST_F(PublisherTest, ArtifactsThatCannotBeReachedRejectNothing) {
  ASSERT_THAT(publisher_->Commit(Write(5)), IsOk());
  const JobRecord job = *store_->GetJob(job_);
  std::filesystem::rename(root_, root_ + ".away");  // as a file system that is not mounted
  EXPECT_THAT(publisher_->ResumePath(job), StatusIs(absl::StatusCode::kUnavailable));
  std::filesystem::rename(root_ + ".away", root_);
  EXPECT_EQ(*publisher_->ResumePath(job), Final(5));
}

// What an unmounted file system shows: the empty folder under it.
TEST_F(PublisherTest, NothingIsConcludedFromARootThatIsNotTheOne) {
  ASSERT_THAT(ClaimArtifactRoot(*store_, root_), IsOk());
  const CommitRequest request = Write(5);
  ASSERT_THAT(store_->BeginCheckpoint(node_, incarnation_, request.checkpoint), IsOk());
  std::filesystem::rename(root_, root_ + ".away");
  std::filesystem::create_directory(root_);
  EXPECT_THAT(publisher_->Recover(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(store_->CheckpointsIn(CheckpointState::kCommitting).value(), testing::SizeIs(1));
  EXPECT_THAT(publisher_->Commit(request), StatusIs(absl::StatusCode::kUnavailable))
      << "the agent asks again";
  std::filesystem::remove(root_);
  std::filesystem::rename(root_ + ".away", root_);
  ASSERT_THAT(publisher_->Commit(request), IsOk());
  EXPECT_TRUE(std::filesystem::exists(Final(5)));
}

// Checksums read by a thread.
class CheckedPublisherTest : public PublisherTest {
 protected:
  void SetUp() override {
    PublisherTest::SetUp();
    checker_ = std::make_unique<ChecksumChecker>([this] {
      absl::MutexLock lock(&mu_);
      ++verdicts_;
    });
    publisher_ = std::make_unique<Publisher>(*store_, root_, false, checker_.get());
  }
  void TearDown() override {
    checker_->Stop();
    PublisherTest::TearDown();
  }
  void AwaitVerdicts(int count) {
    absl::MutexLock lock(&mu_);
    const auto there = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return verdicts_ >= count; };
    ASSERT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(30)));
  }
  int verdicts() {
    absl::MutexLock lock(&mu_);
    return verdicts_;
  }

  absl::Mutex mu_;
  int verdicts_ ABSL_GUARDED_BY(mu_) = 0;
  std::unique_ptr<ChecksumChecker> checker_;
};

TEST_F(CheckedPublisherTest, AJobWaitsForTheChecksumsOnce) {
  ASSERT_THAT(publisher_->Commit(Write(5)), IsOk());
  const JobRecord job = *store_->GetJob(job_);
  EXPECT_THAT(publisher_->ResumePath(job),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("step 5 are being read")));
  AwaitVerdicts(1);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(*publisher_->ResumePath(job), Final(5));
  EXPECT_EQ(verdicts(), 1) << "files that stay as they are, are not read again";
  // The same bytes in another file are another file.
  ASSERT_THAT(ReplaceFile(Final(5) + "/model.safetensors", "weights"), IsOk());
  EXPECT_THAT(publisher_->ResumePath(job), StatusIs(absl::StatusCode::kUnavailable));
  AwaitVerdicts(2);
  EXPECT_EQ(*publisher_->ResumePath(job), Final(5));
}

TEST_F(CheckedPublisherTest, AFlippedBitCostsOneCheckpoint) {
  ASSERT_THAT(publisher_->Commit(Write(5)), IsOk());
  ASSERT_THAT(publisher_->Commit(Write(6)), IsOk());
  const JobRecord job = *store_->GetJob(job_);
  ASSERT_THAT(ReplaceFile(Final(6) + "/model.safetensors", "wEights"), IsOk());
  EXPECT_THAT(publisher_->ResumePath(job), StatusIs(absl::StatusCode::kUnavailable));
  AwaitVerdicts(1);
  EXPECT_THAT(publisher_->ResumePath(job),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("step 5 are being read")));
  EXPECT_THAT(LastEvent(), testing::AllOf(HasSubstr("CHECKPOINT_REJECTED"), HasSubstr("step 6"),
                                          HasSubstr("model.safetensors has crc32c")));
  AwaitVerdicts(2);
  EXPECT_EQ(*publisher_->ResumePath(job), Final(5));
}

TEST(ChecksumCheckerTest, AFileThatCannotBeReadIsTriedAgain) {
  absl::Mutex mu;
  int verdicts = 0;
  ChecksumChecker checker([&] {
    absl::MutexLock lock(&mu);
    ++verdicts;
  });
  const std::vector<FileSum> files = {{"/no/such/file", "file", "00000000", 1, 2, 3}};
  for (int round = 1; round <= 2; ++round) {
    EXPECT_EQ(checker.Ask("/no/such", files), absl::nullopt);
    {
      absl::MutexLock lock(&mu);
      const auto there = [&] { return verdicts >= round; };
      ASSERT_TRUE(mu.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(30)));
    }
    const absl::optional<absl::Status> verdict = checker.Ask("/no/such", files);
    ASSERT_TRUE(verdict.has_value());
    EXPECT_TRUE(absl::IsNotFound(*verdict)) << *verdict;
  }
}

}  // namespace
}  // namespace switchyard
