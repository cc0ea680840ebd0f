#include "server/artifacts/housekeeper.h"

#include <algorithm>
#include <filesystem>
#include <thread>

#include "server/artifacts/publisher_testing.h"

namespace switchyard {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr absl::Duration kGrace = absl::Minutes(10);

// The last two checkpoints, those of every 10 steps and the best one are kept.
class HousekeeperTest : public PublisherTest {
 protected:
  HousekeeperTest() { retention_ = {2, 10, 1}; }
  void SetUp() override {
    PublisherTest::SetUp();
    publisher_ = std::make_unique<Publisher>(*store_, root_, true, nullptr, &holds_);
    StartAgain();
  }
  // As a coordinator that was killed and starts again.
  void StartAgain() {
    housekeeper_ = std::make_unique<Housekeeper>(*store_, *publisher_, holds_, clock_, kGrace);
  }
  void Commit(int64_t step, double validation_loss = 0) {
    CommitRequest request = Write(step);
    request.checkpoint.validation_loss = validation_loss;
    ASSERT_THAT(publisher_->Commit(request), IsOk());
  }
  void EndAttempt() {
    FinishedReport report;
    report.failure = FailureRecord();
    report.failure->reason = FailureReason::kConfigInvalid;
    ASSERT_THAT(store_->RecordReports(node_, incarnation_, {{1, {job_, 1}, report}}), IsOk());
    ASSERT_TRUE(IsFinal(store_->GetAttempt({job_, 1})->state));
  }
  std::vector<std::string> In(const std::string& folder) {
    std::vector<std::string> names;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(root_ + "/p/j/" + folder, error)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  std::vector<int64_t> StepsIn(CheckpointState state) {
    std::vector<int64_t> steps;
    for (const CheckpointRecord& c : Rows(state)) steps.push_back(c.step);
    std::sort(steps.begin(), steps.end());
    return steps;
  }
  std::vector<std::string> Events() {
    std::vector<std::string> messages;
    const auto events = store_->ReadEvents(job_, 0, 1000);
    for (const EventRecord& event : *events) {
      messages.push_back(event.message);
    }
    return messages;
  }

  CheckpointHolds holds_{clock_};
  std::unique_ptr<Housekeeper> housekeeper_;
};

TEST_F(HousekeeperTest, KeepsWhatTheRuleSaysAndRemovesTheRest) {
  const std::vector<double> losses = {4.0, 3.0, 2.0, 3.5, 3.6, 3.7};
  for (int64_t i = 0; i < 6; ++i) Commit(5 * (i + 1) - (i == 2), losses[i]);  // 5 10 14 20 25 30
  EXPECT_THAT(StepsIn(CheckpointState::kDeleting), ElementsAre(5)) << "25 is of the last two";
  EXPECT_THAT(Events(), Contains(HasSubstr("checkpoint of step 5 deleted: kept are the last 2, "
                                           "those of every 10 steps, the best 1")));
  EXPECT_THAT(In("checkpoints"), Contains("step-5")) << "the row comes first";
  housekeeper_->RunOnce();
  EXPECT_THAT(In("checkpoints"),
              ElementsAre("step-10", "step-14", "step-20", "step-25", "step-30"));
  EXPECT_THAT(StepsIn(CheckpointState::kDeleted), ElementsAre(5));
  EXPECT_THAT(In("deleting"), IsEmpty());
  Commit(35, 3.8);
  housekeeper_->RunOnce();
  EXPECT_THAT(In("checkpoints"),
              ElementsAre("step-10", "step-14", "step-20", "step-30", "step-35"));
}

TEST_F(HousekeeperTest, ADeletionGoesOnWhereverItWasCut) {
  for (const bool renamed : {false, true}) {
    for (const bool half : {false, true}) {
      for (const bool gone : {false, true}) {
        const int64_t step = 1 + renamed + 2 * half + 4 * gone;
        Commit(step, 100 + step);
        ASSERT_THAT(store_->BeginDeletion(job_, step, {"test", false}), IsOk());
        std::string folder = Final(step);
        if (renamed) {
          folder = absl::StrCat(root_, "/p/j/deleting/step-", step);
          ASSERT_THAT(MakeFolders(root_ + "/p/j/deleting"), IsOk());
          std::filesystem::rename(Final(step), folder);
        }
        if (half) std::filesystem::remove(folder + "/switchyard/manifest.json");
        if (gone) std::filesystem::remove_all(folder);
        StartAgain();
        housekeeper_->RunOnce();
        EXPECT_FALSE(std::filesystem::exists(Final(step))) << step;
        EXPECT_THAT(In("deleting"), IsEmpty()) << step;
        EXPECT_THAT(StepsIn(CheckpointState::kDeleting), IsEmpty()) << step;
      }
    }
  }
}

TEST_F(HousekeeperTest, AStepCommittedAnewIsNotRemovedByAnOldDeletion) {
  Commit(5, 1);
  ASSERT_THAT(store_->BeginDeletion(job_, 5, {"test", false}), IsOk());
  Commit(5, 1);  // a retry reached the step again before the files had gone
  housekeeper_->RunOnce();
  EXPECT_THAT(StepsIn(CheckpointState::kCommitted), ElementsAre(5));
  EXPECT_THAT(ReadFile(Final(5) + "/model.safetensors"), IsOk());
}

TEST_F(HousekeeperTest, RetentionThatACrashCutOffIsMadeUpFor) {
  Commit(1);
  Commit(2);
  // Committed without what follows a commit.
  CommitRequest request = Write(3);
  BeginOnly(request);
  ASSERT_THAT(publisher_->Recover(), IsOk());
  EXPECT_THAT(StepsIn(CheckpointState::kCommitted), ElementsAre(1, 2, 3));
  StartAgain();
  housekeeper_->RunOnce();
  EXPECT_THAT(StepsIn(CheckpointState::kCommitted), ElementsAre(2, 3));
  EXPECT_THAT(In("checkpoints"), ElementsAre("step-2", "step-3"));
}

TEST_F(HousekeeperTest, ArtifactsThatAreNotMountedAreNotGarbage) {
  Commit(5);
  ASSERT_THAT(store_->BeginDeletion(job_, 5, {"test", false}), IsOk());
  std::filesystem::rename(root_, root_ + ".away");
  for (const bool mount_point : {false, true}) {
    if (mount_point) std::filesystem::create_directory(root_);
    housekeeper_->RunOnce();
    EXPECT_THAT(StepsIn(CheckpointState::kDeleting), ElementsAre(5));
  }
  std::filesystem::remove(root_);
  std::filesystem::rename(root_ + ".away", root_);
  housekeeper_->RunOnce();
  EXPECT_THAT(StepsIn(CheckpointState::kDeleted), ElementsAre(5));
  EXPECT_THAT(In("checkpoints"), IsEmpty());
}

TEST_F(HousekeeperTest, WhatIsBeingDownloadedStaysUntilTheDownloadIsOver) {
  Commit(1);
  {
    const CheckpointHolds::Hold hold(holds_, job_, Final(1));
    Commit(2);
    Commit(3);
    housekeeper_->RunOnce();
    EXPECT_THAT(StepsIn(CheckpointState::kCommitted), ElementsAre(1, 2, 3));
    EXPECT_THAT(
        store_->BeginDeletion(job_, 1, {"test", false},
                              [&](const CheckpointRecord& c) { return holds_.IsHeld(c.path); }),
        StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("downloaded")));
  }
  housekeeper_->RunOnce();
  EXPECT_THAT(StepsIn(CheckpointState::kCommitted), ElementsAre(1, 2, 3)) << "the next file";
  clock_.Advance(CheckpointHolds::kLinger);
  housekeeper_->RunOnce();
  EXPECT_THAT(In("checkpoints"), ElementsAre("step-2", "step-3"));
}

TEST_F(HousekeeperTest, ADownloadThatBeganBeforeTheDeletionEndsFirst) {
  Commit(1);
  ASSERT_THAT(store_->BeginDeletion(job_, 1, {"test", false}), IsOk());
  {
    const CheckpointHolds::Hold hold(holds_, job_, Final(1));
    housekeeper_->RunOnce();
    EXPECT_THAT(In("checkpoints"), ElementsAre("step-1"));
  }
  clock_.Advance(CheckpointHolds::kLinger);
  housekeeper_->RunOnce();
  EXPECT_THAT(In("checkpoints"), IsEmpty());
}

TEST_F(HousekeeperTest, AnAttemptsLeftoversGoAGraceAfterItsEnd) {
  Write(5);
  housekeeper_->RunOnce();
  clock_.Advance(10 * kGrace);
  housekeeper_->RunOnce();
  EXPECT_THAT(In("staging"), ElementsAre("1")) << "it runs";
  EndAttempt();
  housekeeper_->RunOnce();
  clock_.Advance(kGrace - absl::Seconds(1));
  housekeeper_->RunOnce();
  EXPECT_THAT(In("staging"), ElementsAre("1")) << "it has just ended";
  clock_.Advance(absl::Seconds(1));
  housekeeper_->RunOnce();
  EXPECT_FALSE(std::filesystem::exists(root_ + "/p/j/staging"));
}

TEST_F(HousekeeperTest, LeftoversOfBeforeTheStartAreFoundUnknownAttemptsAreNot) {
  Write(5);
  EndAttempt();
  // A database restored from a backup does not know these, and they may run.
  ASSERT_THAT(MakeFolders(root_ + "/p/j/staging/2/step-7"), IsOk());
  ASSERT_THAT(MakeFolders(root_ + "/p/unknown/staging/1/step-7"), IsOk());
  StartAgain();
  housekeeper_->RunOnce();
  EXPECT_THAT(In("staging"), ElementsAre("1", "2"));
  clock_.Advance(kGrace);
  housekeeper_->RunOnce();
  EXPECT_THAT(In("staging"), ElementsAre("2"));
  EXPECT_TRUE(std::filesystem::exists(root_ + "/p/unknown/staging/1/step-7"));
}

TEST_F(HousekeeperTest, LinksInALeftoverAreNotFollowed) {
  const std::string outside = folder_ + "/outside";
  ASSERT_THAT(MakeFolders(outside), IsOk());
  ASSERT_THAT(ReplaceFile(outside + "/precious", "x"), IsOk());
  Write(5);
  std::filesystem::create_directory_symlink(outside, Staging(5) + "/link");
  EndAttempt();
  housekeeper_->RunOnce();
  clock_.Advance(kGrace);
  housekeeper_->RunOnce();
  EXPECT_THAT(In("staging"), IsEmpty());
  EXPECT_THAT(ReadFile(outside + "/precious"), IsOk());
}

TEST_F(HousekeeperTest, ItsThreadHearsOfWhatIsCommitted) {
  housekeeper_->Start();
  Commit(1);
  Commit(2);
  Commit(3);
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (std::filesystem::exists(Final(1)) && absl::Now() < end) std::this_thread::yield();
  housekeeper_->Stop();
  EXPECT_THAT(In("checkpoints"), ElementsAre("step-2", "step-3"));
}

// --- a user's wishes (store) --------------------------------------------------------------------

TEST_F(HousekeeperTest, PinnedOnesStayUntilTheyAreUnpinned) {
  Commit(1);
  ASSERT_THAT(store_->SetPinned(job_, 1, true, "me"), IsOk());
  EXPECT_THAT(LastEvent(), HasSubstr("step 1 pinned"));
  Commit(2);
  Commit(3);
  EXPECT_THAT(StepsIn(CheckpointState::kDeleting), IsEmpty());
  EXPECT_THAT(publisher_->Delete(job_, 1, {"me", true}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("pinned")));
  ASSERT_THAT(store_->SetPinned(job_, 1, false, "me"), IsOk());
  ASSERT_THAT(publisher_->Retire(job_), IsOk());
  EXPECT_THAT(StepsIn(CheckpointState::kDeleting), ElementsAre(1));
  EXPECT_THAT(store_->SetPinned(job_, 1, true, "me"), StatusIs(absl::StatusCode::kNotFound));
  std::vector<std::string> acts;
  const auto audit = store_->ListAudit(0, 10);
  for (const AuditRecord& record : *audit) {
    acts.push_back(absl::StrCat(record.actor, " ", record.action, " ", record.target));
  }
  EXPECT_THAT(acts, ElementsAre("me UnpinCheckpoint projects/p/jobs/j/checkpoints/step-1",
                                "me PinCheckpoint projects/p/jobs/j/checkpoints/step-1"));
}

TEST_F(HousekeeperTest, TheResultOfALiveJobCannotBeDeletedThatOfAnEndedOneOnlyWhenAsked) {
  CommitRequest request = Write(4);
  request.checkpoint.final = true;
  ASSERT_THAT(publisher_->Commit(request), IsOk());
  EXPECT_THAT(publisher_->Delete(job_, 4, {"me", false}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("result")));
  EXPECT_THAT(publisher_->Delete(job_, 4, {"me", true}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("the job is STARTING")));
  EndAttempt();
  ASSERT_TRUE(IsFinal(store_->GetJob(job_)->state));
  EXPECT_THAT(publisher_->Delete(job_, 4, {"me", true}), IsOk());
  EXPECT_THAT(publisher_->Delete(job_, 4, {"me", true}), IsOk()) << "again";
  EXPECT_THAT(publisher_->Delete(job_, 3, {"me", true}), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(HousekeeperTest, WhatAnotherJobStartsFromStays) {
  Commit(4);
  JobRecord other;
  other.id = JobId("projects/p/jobs/other");
  other.uid = "uid-other";
  other.project = "p";
  other.needs.restore_from = Final(4);
  ASSERT_THAT(store_->CreateJob(other, {}), IsOk());
  EXPECT_THAT(publisher_->Delete(job_, 4, {"me", false}),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("job projects/p/jobs/other starts from it")));
  ASSERT_THAT(store_->CancelJob(other.id, absl::ZeroDuration(), {}), IsOk());
  EXPECT_THAT(publisher_->Delete(job_, 4, {"me", false}), IsOk());
}

}  // namespace
}  // namespace switchyard
