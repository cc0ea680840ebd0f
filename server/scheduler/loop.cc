#include "server/scheduler/loop.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/failpoint.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/scheduler/policy.h"

namespace switchyard {
namespace {

// Leases and backoffs end without anybody waking us.
constexpr absl::Duration kTick = absl::Milliseconds(250);

Failpoint before_apply("scheduler.before_apply", FailpointKind::kEvent);
Failpoint after_apply("scheduler.after_apply", FailpointKind::kEvent);
Failpoint before_node_lost("scheduler.before_node_lost", FailpointKind::kEvent);

}  // namespace

SchedulerLoop::SchedulerLoop(Store& store, LeaseTable& leases, Clock& clock,
                             std::function<std::string(const JobRecord&)> resume_path,
                             std::function<void(const NodeId&)> on_expired)
    : store_(store),
      leases_(leases),
      clock_(clock),
      resume_path_(std::move(resume_path)),
      on_expired_(std::move(on_expired)) {}

void SchedulerLoop::Start() {
  thread_ = Thread("scheduler", [this](const StopToken& stop) { Loop(stop); });
}

void SchedulerLoop::Stop() {
  thread_.RequestStop();
  Wake();
  thread_.StopAndJoin();
}

void SchedulerLoop::Wake() {
  absl::MutexLock lock(&mu_);
  woken_ = true;
}

void SchedulerLoop::Loop(const StopToken& stop) {
  while (!stop.StopRequested()) {
    const absl::Status status = RunOnce();
    if (!status.ok()) SY_LOG(ERROR) << "scheduling failed error=" << status.message();
    absl::MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(absl::Condition(&woken_), kTick);
    woken_ = false;
  }
}

absl::Duration SchedulerLoop::NotBefore(const JobRecord& job) {
  if (job.backoff == absl::ZeroDuration()) return -absl::InfiniteDuration();
  const absl::Duration end = clock_.Monotonic() + job.backoff;
  absl::MutexLock lock(&mu_);
  return not_before_.try_emplace({job.id, job.current_attempt}, end).first->second;
}

absl::StatusOr<ClusterSnapshot> SchedulerLoop::Snapshot() {
  ClusterSnapshot snapshot;
  ASSIGN_OR_RETURN(const std::vector<NodeRecord> nodes, store_.ListNodes());
  ASSIGN_OR_RETURN(const std::vector<Reservation> reservations, store_.Reservations());
  const std::map<NodeId, bool> reachable = leases_.Reachable();
  std::set<std::pair<NodeId, int32_t>> busy;
  for (const Reservation& r : reservations) busy.insert({r.node, r.device});
  for (const NodeRecord& node : nodes) {
    const auto lease = reachable.find(node.id);
    if (node.lost || lease == reachable.end()) continue;
    NodeView view{node.id, lease->second, {}};
    for (const DeviceRecord& d : node.devices) {
      view.devices.push_back({d.index, d.kind, busy.contains({node.id, d.index})});
    }
    snapshot.nodes.push_back(std::move(view));
  }
  ASSIGN_OR_RETURN(const std::vector<JobRecord> waiting, store_.JobsIn({JobState::kQueued}));
  for (const JobRecord& job : waiting) {
    snapshot.waiting.push_back(
        {job.id, job.version, job.needs.num_ranks, job.needs.cpu_only, NotBefore(job)});
  }
  return snapshot;
}

absl::Status SchedulerLoop::RunOnce() {
  for (NodeLease& lease : leases_.TakeExpired()) {
    SY_LOG(WARNING) << "lease expired node=" << lease.node << " incarnation=" << lease.incarnation;
    expired_.push_back(std::move(lease));
  }
  while (!expired_.empty()) {
    before_node_lost.Pass();
    RETURN_IF_ERROR(store_.NodeLost(expired_.back().node, expired_.back().incarnation));
    on_expired_(expired_.back().node);
    expired_.pop_back();
  }
  ASSIGN_OR_RETURN(const ClusterSnapshot snapshot, Snapshot());
  if (snapshot.waiting.empty()) {
    absl::MutexLock lock(&mu_);
    not_before_.clear();
    return absl::OkStatus();
  }
  Plan plan = Decide(snapshot, clock_.Monotonic());
  for (GangPlacement& gang : plan.placements) {
    ASSIGN_OR_RETURN(const JobRecord job, store_.GetJob(gang.job));
    if (job.current_attempt > 0) gang.resume_from = resume_path_(job);
  }
  if (!plan.placements.empty()) before_apply.Pass();
  RETURN_IF_ERROR(store_.Apply(plan));
  if (!plan.placements.empty()) after_apply.Pass();
  return absl::OkStatus();
}

}  // namespace switchyard
