#include "server/store/history_pruner.h"

#include "absl/strings/str_cat.h"
#include "server/store/store_testing.h"

namespace switchyard {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

class HistoryPrunerTest : public StoreTest {
 protected:
  // A job with so many steps on node a.
  JobRecord RunJob(const std::string& name, int steps) {
    const JobRecord job = Create(name);
    Register("a");
    const AttemptId attempt = Place(job, {"a"});
    Run("a", attempt);
    std::vector<ReportRecord> reports;
    for (int i = 1; i <= steps; ++i) reports.push_back(Say("a", attempt, StepReport{i, "raw", {}}));
    Report("a", std::move(reports));
    return Get(job);
  }
  void Finish(const JobRecord& job) {
    const AttemptId attempt{job.id, 1};
    CommitFinal("a", attempt, 10);
    Report("a", {Say("a", attempt, FinishedReport{true, false, absl::nullopt})});
    ASSERT_EQ(Get(job).state, JobState::kSucceeded);
  }
  History HistoryOf(const JobRecord& job) {
    return store_->ReadHistory(job.id, HistoryPosition{}, 100000, 100000).value();
  }
  void Prune(const PruneConfig& config = {}) {
    HistoryPruner pruner(*store_, clock_, config);
    const StopToken never;
    ASSERT_THAT(pruner.RunOnce(never), IsOk());
  }
};

TEST_F(HistoryPrunerTest, KeepsTheLastEventOfWhatEndedLongAgo) {
  const JobRecord job = RunJob("old", 5000);
  Finish(job);
  const std::vector<EventRecord> before = HistoryOf(job).events;
  clock_.Advance(absl::Hours(24 * 30));
  Prune();
  EXPECT_THAT(HistoryOf(job).events, SizeIs(before.size())) << "not yet";
  clock_.Advance(absl::Hours(1));
  Prune();
  const History after = HistoryOf(job);
  ASSERT_THAT(after.events, SizeIs(1));
  EXPECT_EQ(after.events[0].job_seq, before.back().job_seq);
  EXPECT_THAT(after.steps, IsEmpty());
  EXPECT_EQ(Get(job).first_event, before.back().job_seq);
  EXPECT_EQ(Get(job).version, store_->GetJob(job.id)->version);
  EXPECT_THAT(store_->ListCheckpoints(job.id, 0, 10).value(), SizeIs(1));
}

TEST_F(HistoryPrunerTest, NeverTouchesWhatHasNotEnded) {
  const JobRecord running = RunJob("running", 100);
  const size_t events = HistoryOf(running).events.size();
  clock_.Advance(absl::Hours(24 * 365));
  Prune();
  EXPECT_THAT(HistoryOf(running).events, SizeIs(events));
  EXPECT_THAT(HistoryOf(running).steps, SizeIs(100));
  EXPECT_EQ(Get(running).first_event, 1);
}

TEST_F(HistoryPrunerTest, InfiniteKeepsAll) {
  const JobRecord job = RunJob("job", 10);
  Finish(job);
  clock_.Advance(absl::Hours(24 * 3650));
  Prune({absl::InfiniteDuration(), absl::InfiniteDuration()});
  EXPECT_THAT(HistoryOf(job).steps, SizeIs(10));
}

TEST_F(HistoryPrunerTest, RequestsAreForgottenOnceTheirJobHasEnded) {
  const RequestKey first{"p", "CreateJob", "request-1", "payload"};
  const RequestKey second{"p", "CreateJob", "request-2", "payload"};
  ASSERT_THAT(store_->CreateJob(MakeJob("ended"), first), IsOk());
  ASSERT_THAT(store_->CreateJob(MakeJob("queued"), second), IsOk());
  ASSERT_THAT(store_->CancelJob(MakeJob("ended").id, absl::ZeroDuration(), {}), IsOk());
  const auto again = [&](const std::string& name, const RequestKey& key) {
    return store_->CreateJob(MakeJob(name), key).status();
  };
  Prune();
  EXPECT_THAT(again("ended", first), IsOk()) << "answered as the first call";
  clock_.Advance(absl::Hours(24 * 7 + 1));
  Prune();
  EXPECT_THAT(again("ended", first), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_THAT(again("queued", second), IsOk()) << "it is still known";
}

}  // namespace
}  // namespace switchyard
