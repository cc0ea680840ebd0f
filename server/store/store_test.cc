#include "server/store/store.h"

#include <sqlite3.h>
#include <stdlib.h>

#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "base/thread.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/migrations.h"
#include "server/store/store_testing.h"
#include "server/store/transaction.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

TEST_F(StoreTest, KeepsAJobAsItWasStored) {
  JobRecord job = MakeJob("j");
  job.labels = {{"team", "a\"b"}};
  job.recipe = "lr: 1";
  ASSERT_THAT(store_->CreateJob(job, {}), IsOk());
  store_.reset();
  store_ = OpenStore(folder_.path(), clock_);
  const JobRecord got = *store_->GetJob(job.id);
  EXPECT_EQ(got.spec, job.spec);
  EXPECT_EQ(got.labels, job.labels);
  EXPECT_EQ(got.recipe, "lr: 1");
  EXPECT_EQ(got.state, JobState::kQueued);
  EXPECT_EQ(got.create_time, clock_.Now());
}

// From every state to every other: what the table allows is done, the rest refused, and the
// database itself refuses to leave a final state.
TEST_F(StoreTest, MovesAJobExactlyAsTheTableSays) {
  int n = 0;
  for (JobState from : AllJobStates()) {
    for (JobState to : AllJobStates()) {
      JobRecord job = Create(absl::StrCat("t", ++n));
      const auto force = [&](Transaction& tx) -> absl::Status {
        // Written past MoveJob: each state with the columns that its CHECKs demand.
        job.state = from;
        job.stop_target = from == JobState::kStopping ? StopTarget::kCancelled : StopTarget::kNone;
        if (IsFinal(from)) job.end_time = tx.now;
        if (from == JobState::kFailed) job.failure = FailureRecord{};
        return UpdateJob(tx, job);
      };
      ASSERT_THAT(store_->Write(force), IsOk());
      JobMove move{to, "moved"};
      if (to == JobState::kStopping) move.stop_target = StopTarget::kCancelled;
      const absl::Status status =
          store_->Write([&](Transaction& tx) { return MoveJob(tx, job, move); });
      if (IsLegal(from, to)) {
        EXPECT_THAT(status, IsOk()) << Name(from) << " to " << Name(to);
        EXPECT_EQ(Get(job).state, to);
        EXPECT_THAT(*store_->ReadEvents(job.id, 1, 10), SizeIs(1));
      } else {
        EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition))
            << Name(from) << " to " << Name(to);
        EXPECT_EQ(Get(job).state, from);
        EXPECT_THAT(*store_->ReadEvents(job.id, 1, 10), IsEmpty());
      }
      if (IsFinal(from) && to != from) {
        EXPECT_THAT(store_->Write([&](Transaction& tx) -> absl::Status {
          auto query = tx.db.Prepare("UPDATE jobs SET state = ? WHERE name = ?");
          return query->Bind(to, job.id.value()).Run().status();
        }),
                    StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("final state")));
      }
    }
  }
}

TEST_F(StoreTest, MovesAnAttemptExactlyAsTheTableSays) {
  Register("a");
  int n = 0;
  for (AttemptState from : AllAttemptStates()) {
    for (AttemptState to : AllAttemptStates()) {
      const JobRecord job = Create(absl::StrCat("t", ++n));
      const AttemptId id = Place(job, {"a"});
      AttemptRecord attempt;
      const absl::Status status = store_->Write([&](Transaction& tx) -> absl::Status {
        auto force = tx.db.Prepare("UPDATE attempts SET state = ?, end_time = ? WHERE job = ?");
        force->Bind(from);
        IsFinal(from) ? force->Int(2, 1) : force->Null(2);
        EXPECT_THAT(force->Text(3, job.id.value()).Run(), IsOk());
        attempt = *LoadAttempt(tx.db, id);
        return MoveAttempt(tx, job, attempt, to, absl::nullopt, "");
      });
      EXPECT_EQ(status.ok(), IsLegal(from, to)) << Name(from) << " to " << Name(to) << status;
      // Frees the devices for the next round.
      ASSERT_THAT(store_->Write([&](Transaction& tx) {
        return tx.db.Execute("DELETE FROM reservations; UPDATE placements SET phase = 5");
      }),
                  IsOk());
    }
  }
}

TEST_F(StoreTest, AJobGoesFromSubmissionToSuccess) {
  Register("a");
  Register("b");
  const JobRecord job = Create("j", 4);
  const AttemptId attempt = Place(job, {"a", "b"});

  ASSERT_THAT(Orders("a"), SizeIs(1));
  EXPECT_EQ(absl::get<AssignOrder>(Orders("b")[0].what).first_rank, 2);
  EXPECT_EQ(absl::get<AssignOrder>(Orders("b")[0].what).spec, job.spec);
  Report("a", {Say("a", attempt, PreparedReport{4001, "{}"})});
  EXPECT_THAT(Orders("a"), IsEmpty()) << "waits for b";
  Report("b", {Say("b", attempt, PreparedReport{4002, "{}"})});
  const StartOrder start = absl::get<StartOrder>(Orders("b")[0].what);
  EXPECT_EQ(start.master_port, 4001) << "node rank 0's";
  EXPECT_EQ(start.master_address, "127.0.0.1");
  Report("a", {Say("a", attempt, RunningReport{})});
  EXPECT_EQ(Get(job).state, JobState::kStarting);
  Report("b", {Say("b", attempt, RunningReport{})});
  EXPECT_EQ(Get(job).state, JobState::kRunning);
  EXPECT_THAT(Orders("a"), IsEmpty());

  CommitFinal("a", attempt, 10);
  Report("a", {Say("a", attempt, FinishedReport{true, false, absl::nullopt})});
  EXPECT_EQ(Get(job).state, JobState::kRunning);
  Report("b", {Say("b", attempt, FinishedReport{true, false, absl::nullopt})});
  EXPECT_EQ(Get(job).state, JobState::kSucceeded);
  EXPECT_THAT(*store_->Reservations(), IsEmpty());
  const auto events = *store_->ReadEvents(job.id, 0, 100);
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].job_seq, static_cast<int64_t>(i) + 1) << "without gaps";
  }
  EXPECT_EQ(events.back().state, JobState::kSucceeded) << "the last event is the end";
}

TEST_F(StoreTest, TheFirstFailureIsKeptAndTheRestIsStopped) {
  Register("a");
  Register("b");
  const JobRecord job = Create("j", 4);
  const AttemptId attempt = Place(job, {"a", "b"});
  Run("a", attempt);
  Run("b", attempt);
  FailureRecord first;
  first.reason = FailureReason::kTrainerSignal;
  first.rank = 3;
  first.signal = 9;
  first.last_lines = {"the last line"};
  Report("b", {Say("b", attempt, RankFailedReport{first})});
  EXPECT_EQ(Get(job).state, JobState::kRunning);
  const auto orders = Orders("a");
  ASSERT_THAT(orders, SizeIs(1));
  EXPECT_FALSE(absl::get<StopOrder>(orders[0].what).checkpoint);
  FailureRecord cascade;
  cascade.reason = FailureReason::kNcclError;
  Report("a", {Say("a", attempt, FinishedReport{false, false, cascade})});
  Report("b", {Say("b", attempt, FinishedReport{false, false, first})});
  EXPECT_EQ(Get(job).state, JobState::kFailed);
  first.cascade = {{FailureReason::kNcclError, -1, "", ""}};
  EXPECT_EQ(Get(job).failure, first);
}

TEST_F(StoreTest, ALostNodeIsRetriedWhileRetriesAreLeft) {
  Register("a");
  const JobRecord job = Create("j", 2, /*retries=*/1);
  Run("a", Place(job, {"a"}));
  ASSERT_THAT(store_->NodeLost(NodeId("a"), Incarnation("i-a")), IsOk());
  EXPECT_EQ(Get(job).state, JobState::kQueued);
  EXPECT_EQ(Get(job).pending, PendingReason::kRetryBackoff);
  EXPECT_EQ(Get(job).retry.retries_used, 1);
  EXPECT_EQ(Get(job).backoff, absl::Seconds(10));
  EXPECT_EQ(store_->ListAttempts(job.id)->at(0).state, AttemptState::kLost);
  EXPECT_THAT(store_->TakeOrders(NodeId("a"), Incarnation("i-a")),
              StatusIs(absl::StatusCode::kAborted));

  Register("b");
  Run("b", Place(job, {"b"}));
  ASSERT_THAT(store_->NodeLost(NodeId("b"), Incarnation("i-b")), IsOk());
  EXPECT_EQ(Get(job).state, JobState::kFailed);
  EXPECT_EQ(Get(job).failure->reason, FailureReason::kNodeLost);
}

TEST_F(StoreTest, ANodeRegisteredAnewIsNotLostByItsOldLease) {
  Register("a");
  ASSERT_THAT(store_->RegisterNode(MakeNode("a", "second life"), {}), IsOk());
  ASSERT_THAT(store_->NodeLost(NodeId("a"), Incarnation("i-a")), IsOk());
  EXPECT_FALSE(store_->ListNodes()->at(0).lost);
}

TEST_F(StoreTest, AnAgentThatRestartsLosesWhatRanAndPreparesTheRestAgain) {
  Register("a");
  Register("b");
  const JobRecord running = Create("running", 2);
  const JobRecord starting = Create("starting", 2);
  const AttemptId ran = Place(running, {"a"});
  Run("a", ran);
  const AttemptId prepared = Place(starting, {"b"});
  Orders("b");

  ASSERT_THAT(store_->RegisterNode(MakeNode("a", "second"), {}), IsOk());
  EXPECT_EQ(Get(running).state, JobState::kFailed);
  EXPECT_EQ(Get(running).failure->reason, FailureReason::kExitUnknown);
  const auto result = store_->RegisterNode(MakeNode("b", "second"), {ran});
  EXPECT_THAT(result->stale, ElementsAre(ran));
  EXPECT_EQ(result->acknowledged_report, 0);
  const auto orders = store_->TakeOrders(NodeId("b"), Incarnation("second"));
  ASSERT_THAT(*orders, SizeIs(1));
  EXPECT_EQ(orders->at(0).attempt, prepared);
  EXPECT_TRUE(absl::holds_alternative<AssignOrder>(orders->at(0).what));
}

TEST_F(StoreTest, ReportsAreTakenInOrderOnceAndUpToTheFirstGap) {
  Register("a");
  const JobRecord job = Create("j", 2);
  const AttemptId attempt = Place(job, {"a"});
  Run("a", attempt);  // reports 1 and 2
  const ReportRecord three{3, attempt, StepReport{1, "one", 2.5}};
  const ReportRecord five{5, attempt, StepReport{3, "three", absl::nullopt}};
  EXPECT_EQ(Report("a", {three, five}).acknowledged, 3);
  EXPECT_EQ(Report("a", {three}).acknowledged, 3);
  const ReportRecord four{4, attempt, StepReport{2, "two", absl::nullopt}};
  EXPECT_EQ(Report("a", {three, four, five}).acknowledged, 5);
  const auto steps = store_->ReadHistory(job.id, {}, 0, 10)->steps;
  ASSERT_THAT(steps, SizeIs(3));
  EXPECT_EQ(steps[2].raw, "three");
  EXPECT_EQ(Get(job).validation_loss, 2.5);
  const HistoryPosition after_two{0, 0, steps[2].id, 2};
  EXPECT_THAT(store_->ReadHistory(job.id, after_two, 0, 10)->steps, SizeIs(1)) << "replay after 2";
}

TEST_F(StoreTest, ReportsOfAClosedAttemptAreNamedStaleAndChangeNothing) {
  Register("a");
  const JobRecord job = Create("j", 2, 3);
  const AttemptId old = Place(job, {"a"});
  Run("a", old);
  Report("a", {Say("a", old, FinishedReport{false, false, absl::nullopt})});
  const AttemptId now = Place(job, {"a"});
  const ReportResult result = Report("a", {Say("a", old, StepReport{1, "late", absl::nullopt}),
                                           Say("a", old, FinishedReport{true, false, {}})});
  EXPECT_THAT(result.stale, ElementsAre(old));
  EXPECT_EQ(Get(job).state, JobState::kStarting);
  EXPECT_EQ(store_->LatestStep(job.id)->id, 0);
  EXPECT_THAT(store_->CheckFence(NodeId("a"), Incarnation("i-a"), old),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("attempt 1")));
  EXPECT_THAT(store_->CheckFence(NodeId("a"), Incarnation("i-a"), now), IsOk());
  EXPECT_THAT(store_->RecordReports(NodeId("a"), Incarnation("other"), {}),
              StatusIs(absl::StatusCode::kAborted));
}

TEST_F(StoreTest, ADeviceIsNeverBookedTwice) {
  Register("a");
  const JobRecord one = Create("one");
  const JobRecord two = Create("two");
  Place(one, {"a"});
  // A plan that rests on an older look at the devices.
  const GangPlacement late{two.id, Get(two).version, {{NodeId("a"), {1}}}, ""};
  EXPECT_THAT(store_->Apply(Plan{{late}, {}}), IsOk());
  EXPECT_EQ(Get(two).state, JobState::kQueued);
  EXPECT_THAT(*store_->ListAttempts(two.id), IsEmpty()) << "rolled back whole";
}

TEST_F(StoreTest, APlanForAnOlderVersionIsNotCarriedOut) {
  Register("a");
  const JobRecord job = Create("j");
  ASSERT_THAT(store_->CancelJob(job.id, absl::Seconds(1), {}), IsOk());
  const GangPlacement late{job.id, job.version, {{NodeId("a"), {0, 1}}}, ""};
  EXPECT_THAT(store_->Apply(Plan{{late}, {}}), IsOk());
  EXPECT_EQ(Get(job).state, JobState::kCancelled);
}

TEST_F(StoreTest, CheckpointsAreFencedKeptAndRetired) {
  Register("a");
  JobRecord wanted = MakeJob("j");
  wanted.needs.retention.keep_last = 2;
  const JobRecord job = *store_->CreateJob(wanted, {});
  const AttemptId attempt = Place(job, {"a"});
  Run("a", attempt);
  CheckpointRecord c;
  c.job = job.id;
  c.attempt = 1;
  c.loss = std::nan("");
  for (int64_t step : {5, 10, 15, 20}) {
    c.step = step;
    const auto row = store_->BeginCheckpoint(NodeId("a"), Incarnation("i-a"), c);
    ASSERT_THAT(row, IsOk());
    EXPECT_EQ(row->state, CheckpointState::kCommitting);
    ASSERT_THAT(
        store_->EndCheckpoint(*row, step == 20 ? absl::DataLossError("torn") : absl::OkStatus()),
        IsOk());
  }
  EXPECT_THAT(*store_->RetireCheckpoints(job.id), SizeIs(1));
  const auto left = *store_->ListCheckpoints(job.id, 0, 10);
  ASSERT_THAT(left, SizeIs(2));
  EXPECT_EQ(left[0].step, 15);
  EXPECT_TRUE(std::isnan(left[0].loss));
  c.attempt = 2;
  EXPECT_THAT(store_->BeginCheckpoint(NodeId("a"), Incarnation("i-a"), c),
              StatusIs(absl::StatusCode::kAborted));
}

// Attempt 1 commits 10 and 20; 20 is found damaged, so that attempt 2 goes on from 10.
TEST_F(StoreTest, ARetryFromAnEarlierStepKeepsItsNewCheckpoints) {
  Register("a");
  JobRecord wanted = MakeJob("j", 2, 1);
  wanted.needs.retention.keep_last = 1;
  const JobRecord job = *store_->CreateJob(wanted, {});
  const auto commit = [&](const AttemptId& attempt, int64_t step) {
    CheckpointRecord c;
    c.job = job.id;
    c.attempt = attempt.number;
    c.step = step;
    c.path = absl::StrCat("/checkpoints/step-", step);
    const auto row = store_->BeginCheckpoint(NodeId("a"), Incarnation("i-a"), c);
    ASSERT_THAT(row, IsOk());
    ASSERT_THAT(store_->EndCheckpoint(*row, absl::OkStatus()), IsOk());
  };
  const auto retired = [&] {
    std::vector<int64_t> steps;
    const auto records = *store_->RetireCheckpoints(job.id);
    for (const CheckpointRecord& c : records) steps.push_back(c.step);
    return steps;
  };
  const AttemptId first = Place(job, {"a"});
  Run("a", first);
  commit(first, 10);
  commit(first, 20);
  FailureRecord failure;
  failure.reason = FailureReason::kNodeLost;
  Report("a", {Say("a", first, FinishedReport{false, false, failure})});
  ASSERT_EQ(Get(job).state, JobState::kQueued);
  const AttemptId second = Place(job, {"a"}, "/checkpoints/step-10");
  Run("a", second);
  commit(second, 12);
  EXPECT_THAT(retired(), ElementsAre(20)) << "12 is the newest, 10 is being resumed from";
  commit(second, 14);
  EXPECT_THAT(retired(), ElementsAre(12));
  Report("a", {Say("a", second, FinishedReport{false, false, failure})});
  ASSERT_EQ(Get(job).state, JobState::kFailed);
  EXPECT_THAT(retired(), ElementsAre(10)) << "nothing resumes from it any more";
}

// Each step is stored after an event of its own; a reader that sees a step must see its event.
TEST_F(StoreTest, HistoryIsReadAsOfOneMoment) {
  constexpr int kPairs = 300;
  Register("a");
  const JobRecord job = Create("j");
  const AttemptId attempt = Place(job, {"a"});
  Run("a", attempt);
  Thread writer("writer", [&](const StopToken&) {
    for (int step = 1; step <= kPairs; ++step) {
      Report("a", {Say("a", attempt, EventReport{"WARNING", "one"})});
      StepReport report;
      report.step = step;
      Report("a", {Say("a", attempt, report)});
    }
  });
  size_t num_steps = 0;
  while (num_steps < kPairs) {
    const auto history = store_->ReadHistory(job.id, {}, 10000, 10000);
    ASSERT_THAT(history, IsOk());
    num_steps = history->steps.size();
    if (num_steps == 0) continue;
    ASSERT_LE(history->steps.back().after_event, history->events.back().seq);
  }
}

TEST_F(StoreTest, ManyWritersAtOnceAreAllStored) {
  std::vector<Thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back("submit", [this, t](const StopToken&) {
      for (int i = 0; i < 20; ++i) {
        EXPECT_THAT(store_->CreateJob(MakeJob(absl::StrCat("j", t, "-", i)), {}), IsOk());
      }
    });
  }
  for (Thread& thread : threads) thread.StopAndJoin();
  JobFilter filter;
  filter.project = "p";
  filter.limit = 1000;
  EXPECT_THAT(*store_->ListJobs(filter), SizeIs(160));
}

TEST_F(StoreTest, ASecondCoordinatorOnTheFolderIsRefused) {
  StoreOptions options;
  options.folder = folder_.path();
  EXPECT_THAT(Store::Open(options, clock_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another switchyardd")));
}

TEST_F(StoreTest, TheEpochGrowsWithEveryStartAndTheUuidStays) {
  const int64_t epoch = store_->epoch();
  const std::string uuid = store_->database_uuid();
  store_.reset();
  store_ = OpenStore(folder_.path(), clock_);
  EXPECT_EQ(store_->epoch(), epoch + 1);
  EXPECT_EQ(store_->database_uuid(), uuid);
}

TEST_F(StoreTest, ANewerOrForeignOrDamagedDatabaseIsRefused) {
  store_.reset();
  const std::string path = folder_.path() + "/switchyard.db";
  StoreOptions options;
  options.folder = folder_.path();
  {
    auto db = Database::Open(path, OpenMode::kReadWrite);
    ASSERT_THAT((*db)->Execute("PRAGMA user_version = 99"), IsOk());
  }
  EXPECT_THAT(Store::Open(options, clock_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("99")));
  {
    auto db = Database::Open(path, OpenMode::kReadWrite);
    ASSERT_THAT((*db)->Execute("PRAGMA user_version = 1; PRAGMA application_id = 7"), IsOk());
  }
  EXPECT_THAT(Store::Open(options, clock_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another program")));
  std::filesystem::resize_file(path, 4096 * 2 + 100);
  EXPECT_THAT(Store::Open(options, clock_), StatusIs(absl::StatusCode::kDataLoss));
}

// A whole life of a job, with the database's files copied before every single statement and commit,
// as a kill would leave them. Each copy opens and holds a state that some transaction made: nothing
// half-done, nothing that was answered missing.
TEST(StoreCrashTest, AKillBetweenAnyTwoStatementsLosesNothingAndLeavesNothingHalf) {
  TempFolder folder;
  SimClock clock;
  std::vector<std::string> copies;
  std::vector<int> answered;  // calls that had been answered at that copy
  int done = 0;
  auto store = OpenStore(folder.path() + "/live", clock, [&] {
    const std::string copy = absl::StrCat(folder.path(), "/copy", copies.size());
    std::filesystem::create_directory(copy);
    for (const char* name : {"switchyard.db", "switchyard.db-wal"}) {
      const std::string from = absl::StrCat(folder.path(), "/live/", name);
      if (std::filesystem::exists(from)) {
        std::filesystem::copy_file(from, absl::StrCat(copy, "/", name));
      }
    }
    copies.push_back(copy);
    answered.push_back(done);
  });
  // The last event a caller was told of, by number of answered calls.
  std::vector<int64_t> events_after = {0};
  const JobRecord job = MakeJob("j", 2, 1);
  const auto step = [&](absl::Status status) {
    ASSERT_THAT(status, IsOk());
    ++done;
    const auto events = store->ReadEvents(job.id, 0, 100);
    events_after.push_back(events->empty() ? 0 : events->back().job_seq);
  };
  const NodeId a("a");
  const Incarnation i("i");
  const AttemptId attempt{job.id, 1};
  step(store->CreateJob(job, {"p", "CreateJob", "r", "x"}).status());
  step(store->RegisterNode(MakeNode("a", "i"), {}).status());
  step(store->Apply(Plan{{{job.id, 1, {{a, {0, 1}}}, ""}}, {}}));
  step(store->TakeOrders(a, i).status());
  step(store->RecordReports(a, i, {{1, attempt, PreparedReport{1, ""}}}).status());
  step(store->RecordReports(a, i, {{2, attempt, RunningReport{}}}).status());
  step(store
           ->RecordReports(
               a, i,
               {{3, attempt, StepReport{1, "s", 1.0}}, {4, attempt, EventReport{"WARNING", "w"}}})
           .status());
  CheckpointRecord c;
  c.job = job.id;
  c.attempt = 1;
  c.final = true;
  absl::StatusOr<CheckpointRecord> row = store->BeginCheckpoint(a, i, c);
  step(row.status());
  step(store->EndCheckpoint(*row, absl::OkStatus()).status());
  step(store->RecordReports(a, i, {{5, attempt, FinishedReport{true, false, {}}}}).status());
  ASSERT_EQ(store->GetJob(job.id)->state, JobState::kSucceeded);
  store.reset();
  ASSERT_GT(copies.size(), 60u);

  const std::set<int64_t> whole(events_after.begin(), events_after.end());
  for (size_t n = 0; n < copies.size(); ++n) {
    auto reopened = OpenStore(copies[n], clock);
    ASSERT_NE(reopened, nullptr) << n;
    const auto events = *reopened->ReadEvents(job.id, 0, 100);
    const int64_t last = events.empty() ? 0 : events.back().job_seq;
    EXPECT_EQ(static_cast<int64_t>(events.size()), last) << "without gaps";
    EXPECT_TRUE(whole.contains(last)) << "copy " << n << " holds half a transaction: " << last;
    EXPECT_GE(last, events_after[static_cast<size_t>(answered[n])])
        << "copy " << n << " lost what had been answered";
    if (events.empty()) continue;
    const JobRecord got = *reopened->GetJob(job.id);
    // What is reserved belongs to an attempt that is open, and the other way round.
    const bool open = got.current_attempt > 0 && !IsFinal(got.state);
    EXPECT_THAT(*reopened->Reservations(), SizeIs(open ? 2 : 0)) << "copy " << n;
    EXPECT_EQ(events.back().state == JobState::kSucceeded, got.state == JobState::kSucceeded);
    // And the same request still answers with the same job.
    EXPECT_EQ(reopened->CreateJob(MakeJob("other"), {"p", "CreateJob", "r", "x"})->id, job.id);
  }
}

// A caller that was told INTERNAL would not ask again.
TEST_F(StoreTest, WantOfMemoryIsUnavailable) {
  const JobRecord job = Create("j");
  sqlite3_hard_heap_limit64(1);
  const absl::Status read = store_->ListAudit(0, 1).status();
  const absl::Status write = store_->CreateJob(MakeJob("k"), {}).status();
  sqlite3_hard_heap_limit64(0);
  EXPECT_THAT(read, StatusIs(absl::StatusCode::kUnavailable, testing::HasSubstr("out of memory")));
  EXPECT_FALSE(write.ok());
  EXPECT_THAT(store_->ListAudit(0, 1), IsOk());
  EXPECT_THAT(store_->CreateJob(MakeJob("k"), {}), IsOk()) << "nothing of it was stored";
}

}  // namespace
}  // namespace switchyard
