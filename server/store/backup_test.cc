#include "server/store/backup.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/crc32c.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_matchers.h"
#include "base/thread.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/artifact_root.h"
#include "server/store/database.h"
#include "server/store/migrations.h"
#include "server/store/state_folder.h"
#include "server/store/store.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const absl::Time kNow = absl::FromUnixSeconds(1'800'000'000);

class BackupTest : public testing::Test {
 protected:
  BackupTest() {
    std::string pattern = testing::TempDir() + "backup_test.XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    state_ = folder_ + "/state";
    artifacts_ = folder_ + "/artifacts";
  }
  ~BackupTest() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<Store> OpenStore() {
    StoreOptions options;
    options.folder = state_;
    absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(std::move(options), clock_);
    EXPECT_THAT(store, IsOk());
    return *std::move(store);
  }

  static JobRecord Job(const std::string& id) {
    JobRecord job;
    job.id = JobId("projects/p/jobs/" + id);
    job.uid = "uid-" + id;
    job.project = "p";
    job.spec = "spec";
    job.needs.num_ranks = 1;
    return job;
  }

  // A published checkpoint with its manifest, and the job's job.json.
  std::string Publish(const std::string& id, int64_t step, const std::string& uid) {
    const std::string job = artifacts_ + "/p/" + id;
    const std::string folder = absl::StrCat(job, "/checkpoints/step-", step);
    EXPECT_THAT(MakeFolders(folder + "/switchyard"), IsOk());
    EXPECT_THAT(ReplaceFile(job + "/job.json", "{}"), IsOk());
    EXPECT_THAT(ReplaceFile(folder + "/model.safetensors", "weights"), IsOk());
    const Json manifest{
        {"version", 1},
        {"job", "projects/p/jobs/" + id},
        {"job_uid", uid},
        {"attempt", 1},
        {"step", step},
        {"final", false},
        {"files", Json::array({Json{{"name", "model.safetensors"},
                                    {"size", 7},
                                    {"crc32c", absl::StrFormat("%08x", Crc32c("weights"))}}})}};
    EXPECT_THAT(ReplaceFile(folder + "/switchyard/manifest.json", DumpJson(manifest)), IsOk());
    return folder;
  }

  // Of the file; nothing in the log hides it.
  void DamagePage(int64_t page) {
    std::filesystem::remove(DatabasePath(state_) + "-wal");
    std::fstream file(DatabasePath(state_), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096 * page);
    file.write(std::string(4096, '\x5a').data(), 4096);
  }

  SimClock clock_;
  std::string folder_, state_, artifacts_;
};

TEST_F(BackupTest, CopiesWhileTheStoreWrites) {
  const auto store = OpenStore();
  ASSERT_THAT(store->CreateJob(Job("first"), {}), IsOk());
  int64_t created = 1;
  {
    Thread writer("writer", [&](const StopToken& stop) {
      while (!stop.StopRequested()) {
        if (store->CreateJob(Job(absl::StrCat("job-", created)), {}).ok()) ++created;
      }
    });
    for (int i = 0; i < 5; ++i) {
      const auto summary = BackUp(state_, folder_ + "/copy.db");
      ASSERT_THAT(summary, IsOk());
      EXPECT_GE(summary->jobs, 1);
      EXPECT_EQ(summary->jobs, summary->events);  // each job with its first event: one moment
    }
  }
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/copy.db-wal"));
  const auto last = BackUp(state_, folder_ + "/copy.db");
  ASSERT_THAT(last, IsOk());
  EXPECT_EQ(last->jobs, created);
}

TEST_F(BackupTest, ADamagedDatabaseGivesNoBackupAndTheOldOneStays) {
  OpenStore()->CreateJob(Job("a"), {}).status().IgnoreError();
  ASSERT_THAT(BackUp(state_, folder_ + "/copy.db"), IsOk());
  const std::string before = ReadFile(folder_ + "/copy.db").value();
  DamagePage(3);
  EXPECT_THAT(BackUp(state_, folder_ + "/copy.db"),
              StatusIs(absl::StatusCode::kDataLoss, testing::_));
  EXPECT_EQ(ReadFile(folder_ + "/copy.db").value(), before);
  EXPECT_THAT(CheckState(state_), StatusIs(absl::StatusCode::kDataLoss, testing::_));
}

TEST_F(BackupTest, RestoreGoesPastTheLostHistory) {
  int64_t lost_epoch = 0;
  OpenStore()->CreateJob(Job("kept"), {}).status().IgnoreError();
  ASSERT_THAT(BackUp(state_, folder_ + "/copy.db"), IsOk());
  {
    const auto store = OpenStore();
    ASSERT_THAT(store->CreateJob(Job("made-later"), {}), IsOk());
    lost_epoch = store->epoch();
    EXPECT_THAT(Restore(state_, folder_ + "/copy.db", artifacts_, kNow),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another switchyardd")));
  }
  const std::string adopted = Publish("kept", 20, "uid-kept");
  Publish("kept", 30, "uid-of-another-job");
  Publish("made-later", 10, "uid-made-later");
  const auto report = Restore(state_, folder_ + "/copy.db", artifacts_, kNow);
  ASSERT_THAT(report, IsOk());
  EXPECT_EQ(report->restored.jobs, 1);
  EXPECT_EQ(report->restored.restore_generation, 1);
  EXPECT_GT(report->restored.epoch, lost_epoch);
  EXPECT_THAT(report->adopted_checkpoints, ElementsAre(adopted));
  EXPECT_THAT(report->unknown_jobs, ElementsAre(artifacts_ + "/p/made-later"));
  EXPECT_TRUE(std::filesystem::exists(report->replaced));

  const auto store = OpenStore();
  EXPECT_THAT(store->GetJob(JobId("projects/p/jobs/made-later")),
              StatusIs(absl::StatusCode::kNotFound, testing::_));
  const auto checkpoints = store->ListCheckpoints(JobId("projects/p/jobs/kept"), 0, 10);
  ASSERT_THAT(checkpoints, IsOk());
  ASSERT_EQ(checkpoints->size(), 1u);
  EXPECT_EQ(checkpoints->front().step, 20);
  EXPECT_EQ(checkpoints->front().path, adopted);
}

TEST_F(BackupTest, RestoreRefusesADamagedBackupAndChangesNothing) {
  OpenStore()->CreateJob(Job("a"), {}).status().IgnoreError();
  const std::string before = ReadFile(DatabasePath(state_)).value();
  ASSERT_THAT(ReplaceFile(folder_ + "/bad.db", "not a database at all, whatever its length is"),
              IsOk());
  EXPECT_FALSE(Restore(state_, folder_ + "/bad.db", artifacts_, kNow).ok());
  EXPECT_EQ(ReadFile(DatabasePath(state_)).value(), before);
  EXPECT_THAT(OpenStore()->GetJob(JobId("projects/p/jobs/a")), IsOk());
}

// Between any two steps: the next start has the restored database, or the one of before.
TEST_F(BackupTest, CrashBetweenTheRenamesOfARestoreLosesNothing) {
  OpenStore()->CreateJob(Job("kept"), {}).status().IgnoreError();
  ASSERT_THAT(BackUp(state_, folder_ + "/copy.db"), IsOk());
  int crashes = 0;
  for (int step = 1;; ++step) {
    // The log of a coordinator that was killed: it must not meet the restored database.
    const std::string job = absl::StrCat("made-later-", step);
    const pid_t killed = ::fork();
    if (killed == 0) {
      const auto store = OpenStore();
      ::_exit(store->CreateJob(Job(job), {}).ok() ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(killed, &status, 0), killed);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ASSERT_TRUE(std::filesystem::exists(DatabasePath(state_) + "-wal"));
    const pid_t restoring = ::fork();
    if (restoring == 0) {
      if (!ArmFailpoints(absl::StrCat("restore.between_steps=crash@", step)).ok()) ::_exit(2);
      ::_exit(Restore(state_, folder_ + "/copy.db", artifacts_, kNow).ok() ? 0 : 1);
    }
    ASSERT_EQ(::waitpid(restoring, &status, 0), restoring);
    const bool crashed = WIFSIGNALED(status);
    ASSERT_TRUE(crashed || WEXITSTATUS(status) == 0) << step;
    const auto store = OpenStore();
    EXPECT_THAT(store->GetJob(JobId("projects/p/jobs/kept")), IsOk()) << step;
    EXPECT_FALSE(store->GetJob(JobId("projects/p/jobs/" + job)).ok()) << step;
    EXPECT_TRUE(store->held_after_restore()) << step;
    EXPECT_FALSE(std::filesystem::exists(DatabasePath(state_) + ".replacing")) << step;
    if (!crashed) break;
    ++crashes;
  }
  EXPECT_GE(crashes, 5);
  EXPECT_THAT(CheckState(state_), IsOk());
}

TEST_F(BackupTest, MissingDatabaseIsNotMadeAnewBesideItsLeftovers) {
  OpenStore()->CreateJob(Job("a"), {}).status().IgnoreError();
  std::filesystem::rename(DatabasePath(state_), DatabasePath(state_) + ".before-1");
  StoreOptions options;
  options.folder = state_;
  EXPECT_THAT(Store::Open(options, clock_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("a database was here")));
  EXPECT_FALSE(std::filesystem::exists(DatabasePath(state_)));
}

TEST_F(BackupTest, RestoreDoesNotJudgeAnArtifactRootThatIsNotMounted) {
  ASSERT_THAT(ClaimArtifactRoot(*OpenStore(), artifacts_), IsOk());
  ASSERT_THAT(BackUp(state_, folder_ + "/copy.db"), IsOk());
  std::filesystem::remove(artifacts_ + "/.switchyard-root");
  EXPECT_THAT(Restore(state_, folder_ + "/copy.db", artifacts_, kNow),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("is it mounted?")));
}

TEST_F(BackupTest, RecoverReadsAroundADamagedPage) {
  {
    const auto store = OpenStore();
    for (int i = 0; i < 400; ++i) {
      ASSERT_THAT(store->CreateJob(Job(absl::StrCat("job-", i)), {}), IsOk());
    }
  }
  // A leaf of the events' tree, so that most jobs and most events stay readable.
  int64_t page = 0;
  {
    const auto db = Database::Open(DatabasePath(state_), OpenMode::kReadOnly);
    ASSERT_THAT(db, IsOk());
    page = (*db)->QueryInt("SELECT max(rootpage) FROM sqlite_schema").value() + 20;
  }
  DamagePage(page);
  ASSERT_THAT(CheckState(state_), StatusIs(absl::StatusCode::kDataLoss, testing::_));
  const auto report = Recover(state_, artifacts_, kNow);
  ASSERT_THAT(report, IsOk());
  EXPECT_GT(report->restored.restored.jobs, 300);
  EXPECT_THAT(CheckState(state_), IsOk());
  EXPECT_THAT(OpenStore()->GetJob(JobId("projects/p/jobs/job-399")), IsOk());
}

TEST_F(BackupTest, StateFolderRefusesNetworkFileSystems) {
  EXPECT_STREQ(NetworkFileSystem(0x6969), "NFS");
  EXPECT_STREQ(NetworkFileSystem(0xff534d42), "CIFS");
  EXPECT_STREQ(NetworkFileSystem(static_cast<int32_t>(0xff534d42)), "CIFS");  // where it is signed
  EXPECT_EQ(NetworkFileSystem(0xef53), nullptr);                              // ext4
  EXPECT_THAT(CheckLocalFileSystem(folder_), IsOk());
}

TEST_F(BackupTest, BallastIsFilledOnceAndFreedOnce) {
  Ballast ballast(folder_, 1 << 20);
  EXPECT_TRUE(ballast.Fill());
  EXPECT_EQ(std::filesystem::file_size(folder_ + "/ballast"), 1u << 20);
  EXPECT_TRUE(ballast.Fill());
  EXPECT_TRUE(ballast.Free());
  EXPECT_FALSE(ballast.Free());
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/ballast"));
}

}  // namespace
}  // namespace switchyard
