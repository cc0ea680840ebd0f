#include "server/scheduler/loop.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/scheduler/policy.h"

namespace switchyard {
namespace {

// Leases and backoffs end without anybody waking us.
constexpr absl::Duration kTick = absl::Milliseconds(250);
// How often live jobs are looked at.
constexpr absl::Duration kWatchEvery = absl::Seconds(1);
// How much of a run time a crash may forget.
constexpr absl::Duration kAccountEvery = absl::Seconds(10);

}  // namespace

SchedulerLoop::SchedulerLoop(
    Store& store, LeaseTable& leases, Clock& clock,
    std::function<absl::StatusOr<std::string>(const JobRecord&)> resume_path,
    std::function<void(const NodeId&)> on_expired, const SchedulerConfig& config)
    : store_(store),
      leases_(leases),
      clock_(clock),
      resume_path_(std::move(resume_path)),
      on_expired_(std::move(on_expired)),
      config_(config),
      health_(store, config.health),
      view_(store),
      quarantine_(store, config.quarantine) {}

void SchedulerLoop::Start(absl::Duration hold) {
  thread_ = Thread("scheduler", [this, hold](const StopToken& stop) { Loop(hold, stop); });
}

void SchedulerLoop::Stop() {
  thread_.RequestStop();
  Wake();
  thread_.StopAndJoin();
}

void SchedulerLoop::Wake() {
  MonitorLock lock(&mu_);
  woken_ = true;
}

void SchedulerLoop::Loop(absl::Duration hold, const StopToken& stop) {
  if (hold > absl::ZeroDuration()) {
    SY_LOG(WARNING) << "the database was restored: nothing is placed for "
                    << absl::FormatDuration(hold);
    // Leases last as long: none of them ends meanwhile.
    if (stop.WaitForStop(hold)) return;
    const absl::Status ended = store_.EndRestoreHold();
    if (!ended.ok()) SY_LOG(ERROR) << "ending the hold failed error=" << ended.message();
  }
  while (!stop.StopRequested()) {
    const absl::Status status = RunOnce();
    if (!status.ok()) SY_LOG(ERROR) << "scheduling failed error=" << status.message();
    MonitorLock lock(&mu_);
    mu_.AwaitWithTimeout([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return woken_; }, kTick);
    woken_ = false;
  }
}

absl::Status SchedulerLoop::Refresh() {
  return view_.Refresh(clock_.Monotonic(), leases_.Reachable());
}

absl::StatusOr<ClusterSnapshot> SchedulerLoop::Snapshot() {
  absl::MutexLock lock(&view_mu_);
  RETURN_IF_ERROR(Refresh());
  return view_.snapshot();
}

absl::Status SchedulerLoop::ExpireLeases() {
  for (NodeLease& lease : leases_.TakeExpired()) {
    SY_LOG(WARNING) << "lease expired node=" << lease.node << " incarnation=" << lease.incarnation;
    expired_.push_back(std::move(lease));
  }
  while (!expired_.empty()) {
    RETURN_IF_ERROR(store_.NodeLost(expired_.back().node, expired_.back().incarnation));
    on_expired_(expired_.back().node);
    expired_.pop_back();
  }
  return absl::OkStatus();
}

absl::Status SchedulerLoop::ChooseCheckpoints(Plan& plan) {
  std::vector<GangPlacement> placements;
  for (GangPlacement& gang : plan.placements) {
    ASSIGN_OR_RETURN(const JobRecord job, store_.GetJob(gang.job));
    if (job.current_attempt > 0) {
      absl::StatusOr<std::string> path = resume_path_(job);
      if (!path.ok()) {
        SY_LOG(INFO) << "job not placed job=" << job.id << " error=" << path.status().message();
        plan.pending.push_back({gang.job, gang.version, PendingReason::kMaintenance,
                                std::string(path.status().message())});
        continue;
      }
      gang.resume_from = *std::move(path);
    }
    placements.push_back(std::move(gang));
  }
  plan.placements = std::move(placements);
  return absl::OkStatus();
}

std::map<AttemptId, absl::Duration> SchedulerLoop::TakeRunTimes(absl::Duration now) {
  std::map<AttemptId, absl::Duration> held;
  std::map<AttemptId, absl::Duration> still;
  for (const auto& [id, job] : view_.live()) {
    if (job.max_run_time <= absl::ZeroDuration()) continue;
    const AttemptId attempt{id, job.attempt};
    absl::Duration since = accounted_.try_emplace(attempt, now).first->second;
    const absl::Duration time = now - since;
    const bool over = job.run_time + time >= job.max_run_time && job.state != JobState::kStopping;
    if (time > absl::ZeroDuration() && (over || time >= kAccountEvery)) {
      held[attempt] = time;
      since = now;
    }
    still[attempt] = since;
  }
  // The rest of attempts that have ended since.
  for (const auto& [attempt, since] : accounted_) {
    if (!still.contains(attempt) && now > since) held[attempt] = now - since;
  }
  accounted_ = std::move(still);
  return held;
}

absl::Status SchedulerLoop::WatchLive(absl::Duration now) {
  if (now - watched_ < kWatchEvery) return absl::OkStatus();
  watched_ = now;
  std::map<AttemptId, absl::Duration> held;
  std::vector<ConditionChange> changes;
  {
    absl::MutexLock lock(&view_mu_);
    held = TakeRunTimes(now);
    changes = health_.Update(now, view_.live(), view_.snapshot().nodes);
  }
  RETURN_IF_ERROR(store_.AddRunTime(held));
  const absl::Status told = store_.SetConditions(changes);
  if (!told.ok()) health_.Retell();
  return told;
}

absl::Status SchedulerLoop::Quarantine(absl::Duration now) {
  std::vector<QuarantineChange> changes;
  quarantine_.Collect();
  {
    absl::MutexLock lock(&view_mu_);
    RETURN_IF_ERROR(Refresh());
    changes = quarantine_.Update(now, view_.snapshot().nodes);
  }
  for (const QuarantineChange& change : changes) {
    const bool held = !change.quarantine.message.empty();
    SY_LOG(WARNING) << (held ? "node quarantined node=" : "node released node=") << change.node
                    << " level=" << change.quarantine.level;
    RETURN_IF_ERROR(store_.SetQuarantine(change.node, change.quarantine));
  }
  return absl::OkStatus();
}

absl::Status SchedulerLoop::RunOnce() {
  RETURN_IF_ERROR(ExpireLeases());
  const absl::Duration now = clock_.Monotonic();
  RETURN_IF_ERROR(Quarantine(now));
  Plan plan;
  {
    absl::MutexLock lock(&view_mu_);
    RETURN_IF_ERROR(Refresh());
    plan = Decide(view_.snapshot(), now);
    view_.SetHolds(plan.holds);
  }
  plan.preemption_grace = config_.preemption_grace;
  RETURN_IF_ERROR(ChooseCheckpoints(plan));
  RETURN_IF_ERROR(store_.Apply(plan));
  if (plan.more_pending) Wake();
  return WatchLive(now);
}

}  // namespace switchyard
