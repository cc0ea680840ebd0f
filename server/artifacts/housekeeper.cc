#include "server/artifacts/housekeeper.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace switchyard {
namespace {

// Between two rounds without news: what was held or could not be removed is tried again.
constexpr absl::Duration kRound = absl::Seconds(30);
// How long the thread takes to see that it should stop.
constexpr absl::Duration kTick = absl::Milliseconds(200);

}  // namespace

Housekeeper::Housekeeper(Store& store, Publisher& publisher, CheckpointHolds& holds, Clock& clock,
                         absl::Duration grace)
    : store_(store), publisher_(publisher), holds_(holds), clock_(clock), grace_(grace) {
  store.Subscribe([inbox = inbox_](const ChangeSet& changes) {
    if (changes.attempt_changes.empty() && changes.checkpoints.empty()) return;
    MonitorLock lock(&inbox->mu);
    for (const AttemptChange& change : changes.attempt_changes) {
      if (!IsFinal(change.to)) continue;
      inbox->attempts.insert(change.attempt);
      inbox->jobs.insert(change.attempt.job);  // what it resumed from is not in use any more
    }
    for (const CheckpointChange& change : changes.checkpoints) {
      inbox->deleting = inbox->deleting || change.to == CheckpointState::kDeleting;
    }
  });
}

void Housekeeper::Start() {
  thread_ = Thread("housekeeper", [this](const StopToken& stop) { Loop(stop); });
}

void Housekeeper::Loop(const StopToken& stop) {
  absl::Duration next = clock_.Monotonic();
  while (!stop.StopRequested()) {
    {
      MonitorLock lock(&inbox_->mu);
      const auto news = [this]() ABSL_SHARED_LOCKS_REQUIRED(inbox_->mu) {
        return inbox_->deleting || !inbox_->jobs.empty() || !inbox_->attempts.empty();
      };
      const absl::Duration wait = std::min(kTick, next - clock_.Monotonic());
      if (wait > absl::ZeroDuration() && !inbox_->mu.AwaitWithTimeout(news, wait)) continue;
    }
    RunOnce();
    next = clock_.Monotonic() + kRound;
    for (const auto& [attempt, due] : staged_) next = std::min(next, due);
  }
}

void Housekeeper::Tell(const std::string& what, const absl::Status& status) {
  std::string& told = told_[what];
  const std::string text = status.ok() ? "" : std::string(status.message());
  if (!text.empty() && text != told) SY_LOG(WARNING) << what << " failed error=" << text;
  told = text;
}

void Housekeeper::LookForLeftovers() {
  const absl::StatusOr<std::vector<JobId>> jobs = store_.JobsToRetireFrom();
  Tell("reading jobs to retire from", jobs.status());
  if (jobs.ok()) jobs_.insert(jobs->begin(), jobs->end());
  const absl::StatusOr<std::vector<AttemptId>> staged = publisher_.ListStaged();
  Tell("listing staging folders", staged.status());
  if (staged.ok()) {
    for (const AttemptId& id : *staged) staged_.emplace(id, clock_.Monotonic() + grace_);
  }
  looked_ = jobs.ok() && staged.ok();
}

void Housekeeper::RunOnce() {
  if (!looked_) LookForLeftovers();
  const absl::Duration now = clock_.Monotonic();
  {
    MonitorLock lock(&inbox_->mu);
    jobs_.merge(inbox_->jobs);
    inbox_->jobs.clear();
    for (const AttemptId& id : inbox_->attempts) staged_[id] = now + grace_;
    inbox_->attempts.clear();
    inbox_->deleting = false;
  }
  jobs_.merge(holds_.TakeReleased());
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    const absl::Status status = publisher_.Retire(*it);
    Tell("retention", status);
    it = status.ok() || absl::IsNotFound(status) ? jobs_.erase(it) : std::next(it);
  }
  Tell("removing checkpoints", publisher_.RemoveDeleted());
  for (auto it = staged_.begin(); it != staged_.end();) {
    if (it->second > now) {
      ++it;
      continue;
    }
    const absl::Status status = publisher_.RemoveStaged(it->first);
    // An attempt that is not over says so when it is, and one that is not known is not ours.
    const bool settled =
        status.ok() || absl::IsNotFound(status) || absl::IsFailedPrecondition(status);
    Tell("removing a staging folder", settled ? absl::OkStatus() : status);
    if (settled) {
      it = staged_.erase(it);
    } else {
      it->second = now + kRound;
      ++it;
    }
  }
}

}  // namespace switchyard
