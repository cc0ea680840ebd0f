// Databases that earlier releases wrote, as SQL text in testdata: made by each one's own store,
// with jobs in every state. All of them must open as if this binary had written them.
#include "server/store/migrations.h"

#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/store/database.h"
#include "server/store/state_folder.h"
#include "server/store/store_testing.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// The schema without regard to the order in which its parts were made.
std::string SchemaOf(Database& db) {
  return *db.QueryText(
      "SELECT group_concat(sql, ';') FROM (SELECT sql FROM sqlite_schema ORDER BY name)");
}

class MigrationsTest : public testing::TestWithParam<int> {
 protected:
  std::unique_ptr<Database> OpenDatabase(const std::string& folder) {
    auto db = Database::Open(DatabasePath(folder), OpenMode::kReadWrite);
    EXPECT_THAT(db, IsOk());
    return db.ok() ? *std::move(db) : nullptr;
  }
  void SetUp() override {
    std::ifstream file(absl::StrCat(SY_TESTDATA, "/schema-", GetParam(), ".sql"));
    const std::string sql((std::istreambuf_iterator<char>(file)), {});
    ASSERT_FALSE(sql.empty());
    const auto db = OpenDatabase(folder_.path());
    ASSERT_THAT(db->Execute(sql), IsOk());
    ASSERT_EQ(*db->QueryInt("PRAGMA user_version"), GetParam());
  }
  JobRecord Job(Store& store, const std::string& name) {
    auto job = store.GetJob(JobId("projects/p/jobs/" + name));
    EXPECT_THAT(job, IsOk()) << name;
    return job.ok() ? *std::move(job) : JobRecord();
  }

  TempFolder folder_;
  SimClock clock_;
};

TEST_P(MigrationsTest, TheResultIsWhatANewDatabaseIs) {
  { ASSERT_NE(OpenStore(folder_.path(), clock_), nullptr); }
  const TempFolder fresh_folder;
  { ASSERT_NE(OpenStore(fresh_folder.path(), clock_), nullptr); }
  const auto migrated = OpenDatabase(folder_.path());
  const auto fresh = OpenDatabase(fresh_folder.path());
  EXPECT_THAT(migrated->CheckIntegrity(), IsOk());
  EXPECT_EQ(*migrated->QueryInt("PRAGMA user_version"), CurrentSchemaVersion());
  EXPECT_EQ(SchemaOf(*migrated), SchemaOf(*fresh));
}

TEST_P(MigrationsTest, NothingIsLost) {
  const auto store = OpenStore(folder_.path(), clock_);
  const std::map<std::string, JobState> states = {
      {"succeeded", JobState::kSucceeded}, {"failed", JobState::kFailed},
      {"cancelled", JobState::kCancelled}, {"running", JobState::kRunning},
      {"stopping", JobState::kStopping},   {"starting", JobState::kStarting},
      {"queued", JobState::kQueued}};
  for (const auto& [name, state] : states) {
    const JobRecord job = Job(*store, name);
    EXPECT_EQ(job.state, state) << name;
    EXPECT_EQ(job.spec, std::string("spec\0with zero", 14)) << name;
    EXPECT_EQ(job.labels, (std::map<std::string, std::string>{{"team", "it's"}})) << name;
    EXPECT_EQ(job.needs.no_progress_limit, 3) << name;
    EXPECT_EQ(job.needs.retention.keep_last, 2) << name;
    // Events count from 1 without a gap, and the last state among them is the job's.
    const auto history = store->ReadHistory(job.id, HistoryPosition{}, 1000, 1000);
    ASSERT_THAT(history, IsOk());
    int64_t number = 0;
    JobState last = JobState::kQueued;
    for (const EventRecord& event : history->events) {
      EXPECT_EQ(event.job_seq, ++number) << name;
      last = event.state;
    }
    EXPECT_GT(number, 0) << name;
    EXPECT_EQ(last, state) << name;
  }
  if (GetParam() >= 4) {
    EXPECT_EQ(Job(*store, "paused").state, JobState::kPaused);
  }

  const JobRecord done = Job(*store, "succeeded");
  EXPECT_EQ(done.validation_loss, 2.75);
  const auto attempts = store->ListAttempts(done.id);
  ASSERT_THAT(attempts, IsOk());
  ASSERT_THAT(*attempts, SizeIs(2));
  ASSERT_TRUE((*attempts)[0].failure.has_value());
  EXPECT_EQ((*attempts)[0].failure->reason, FailureReason::kTrainerSignal);
  EXPECT_THAT((*attempts)[0].failure->last_lines, ElementsAre("line \"one\"", "line two"));
  EXPECT_THAT((*attempts)[0].nodes, ElementsAre("a", "b"));
  const auto history = store->ReadHistory(done.id, HistoryPosition{}, 0, 1000);
  ASSERT_THAT(history, IsOk());
  ASSERT_THAT(history->steps, SizeIs(4));
  EXPECT_EQ(history->steps[0].raw, std::string("step\0one", 8));
  EXPECT_EQ(Job(*store, "failed").failure->reason, FailureReason::kNanLoss);
}

TEST_P(MigrationsTest, CheckpointsKeepTheirStateAndTheirOrder) {
  const auto store = OpenStore(folder_.path(), clock_);
  const auto checkpoints = store->ListCheckpoints(Job(*store, "succeeded").id, 0, 10);
  ASSERT_THAT(checkpoints, IsOk());
  // The store of schema 1 did not spare the one that the attempt had resumed from.
  ASSERT_THAT(*checkpoints, SizeIs(GetParam() == 1 ? 2 : 3));
  EXPECT_EQ((*checkpoints)[0].step, 10);
  EXPECT_TRUE((*checkpoints)[0].final);
  EXPECT_EQ((*checkpoints)[0].state, CheckpointState::kCommitted);
  EXPECT_EQ((*checkpoints)[0].manifest_crc32c, 0x8f00b204);
  EXPECT_EQ((*checkpoints)[1].state, CheckpointState::kCommitted);
  for (size_t i = 1; i < checkpoints->size(); ++i) {
    EXPECT_GT((*checkpoints)[i - 1].commit_seq, (*checkpoints)[i].commit_seq) << i;
    EXPECT_GT((*checkpoints)[i].commit_seq, 0) << i;
  }
  const auto committing = store->CheckpointsIn(CheckpointState::kCommitting);
  ASSERT_THAT(committing, IsOk());
  ASSERT_THAT(*committing, SizeIs(1));
  EXPECT_EQ((*committing)[0].step, 6);
}

TEST_P(MigrationsTest, WhatWasAskedBeforeIsAnsweredAsBefore) {
  const auto store = OpenStore(folder_.path(), clock_);
  JobRecord again = MakeJob("again");
  const auto job = store->CreateJob(again, {"p", "CreateJob", "request-queued", "payload-queued"});
  ASSERT_THAT(job, IsOk());
  EXPECT_EQ(job->id, JobId("projects/p/jobs/queued"));
}

// The agents of before go on: their orders, their numbers of reports, the end of what they ran.
TEST_P(MigrationsTest, WhatRanGoesOnToItsEnd) {
  const auto store = OpenStore(folder_.path(), clock_);
  const auto nodes = store->ListNodes();
  ASSERT_THAT(nodes, IsOk());
  ASSERT_THAT(*nodes, SizeIs(2));
  const AttemptId attempt{JobId("projects/p/jobs/running"), 1};
  EXPECT_THAT(store->BeginCheckpoint(NodeId("a"), Incarnation("i-a"),
                                     [&] {
                                       CheckpointRecord c;
                                       c.job = attempt.job;
                                       c.attempt = 1;
                                       c.step = 9;
                                       c.final = true;
                                       return c;
                                     }()),
              IsOk());
  auto committing = store->CheckpointsIn(CheckpointState::kCommitting);
  ASSERT_THAT(committing, IsOk());
  for (const CheckpointRecord& c : *committing) {
    ASSERT_THAT(store->EndCheckpoint(c, absl::OkStatus()), IsOk());
  }
  for (const NodeRecord& node : *nodes) {
    const auto registered = store->RegisterNode(node, {attempt});
    ASSERT_THAT(registered, IsOk());
    EXPECT_GT(registered->acknowledged_report, 0);
    EXPECT_THAT(registered->stale, IsEmpty());
    const auto reported = store->RecordReports(
        node.id, node.incarnation,
        {{registered->acknowledged_report + 1, attempt, FinishedReport{true, false, {}}}});
    ASSERT_THAT(reported, IsOk());
    EXPECT_EQ(reported->acknowledged, registered->acknowledged_report + 1);
  }
  EXPECT_EQ(Job(*store, "running").state, JobState::kSucceeded);
  EXPECT_THAT(store->CancelJob(JobId("projects/p/jobs/queued"), absl::Seconds(1), {}), IsOk());
  EXPECT_EQ(Job(*store, "queued").state, JobState::kCancelled);
}

INSTANTIATE_TEST_SUITE_P(Schemas, MigrationsTest, testing::Values(1, 2, 3, 4, 6));

}  // namespace
}  // namespace switchyard
