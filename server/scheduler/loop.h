// The scheduler's one thread: expires leases, looks at what changed, decides, applies; then tells
// the conditions of live jobs and ends those that have run for too long.
#ifndef SWITCHYARD_SERVER_SCHEDULER_LOOP_H_
#define SWITCHYARD_SERVER_SCHEDULER_LOOP_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/monitor.h"
#include "base/thread.h"
#include "server/scheduler/health.h"
#include "server/scheduler/lease.h"
#include "server/scheduler/quarantine.h"
#include "server/scheduler/view.h"
#include "server/snapshot.h"
#include "server/store/store.h"

namespace switchyard {

struct SchedulerConfig {
  // What a preempted gang gets for its last step and its checkpoint.
  absl::Duration preemption_grace = absl::Seconds(60);
  HealthConfig health;
  QuarantineConfig quarantine;
};

class SchedulerLoop {
 public:
  // `resume_path` answers the newest usable checkpoint of a job, or an empty string; it may read
  // files. When it fails, the job is not placed in this round. `on_expired` is called for each
  // lease that ended, once that is stored.
  SchedulerLoop(Store& store, LeaseTable& leases, Clock& clock,
                std::function<absl::StatusOr<std::string>(const JobRecord&)> resume_path,
                std::function<void(const NodeId&)> on_expired, const SchedulerConfig& config = {});

  // Starts the thread. Not before recovery is done. `hold`: nothing is placed before that has
  // passed (Store::held_after_restore).
  void Start(absl::Duration hold = absl::ZeroDuration());
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

  // Something changed. Thread-safe, never blocks.
  void Wake() ABSL_LOCKS_EXCLUDED(mu_);

  // One round. Called by the thread; by tests without Start().
  absl::Status RunOnce();

  // What Decide would see now; PlanJob asks the same question. Thread-safe.
  absl::StatusOr<ClusterSnapshot> Snapshot() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Loop(absl::Duration hold, const StopToken& stop) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status ExpireLeases();
  absl::Status Quarantine(absl::Duration now) ABSL_LOCKS_EXCLUDED(view_mu_);
  absl::Status Refresh() ABSL_EXCLUSIVE_LOCKS_REQUIRED(view_mu_);
  // Fills in where gangs resume from; takes those out of the plan whose checkpoints cannot be read.
  absl::Status ChooseCheckpoints(Plan& plan);
  absl::Status WatchLive(absl::Duration now) ABSL_LOCKS_EXCLUDED(view_mu_);
  std::map<AttemptId, absl::Duration> TakeRunTimes(absl::Duration now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(view_mu_);

  Store& store_;
  LeaseTable& leases_;
  Clock& clock_;
  const std::function<absl::StatusOr<std::string>(const JobRecord&)> resume_path_;
  const std::function<void(const NodeId&)> on_expired_;
  const SchedulerConfig config_;

  // Leases that ended and whose loss is not stored yet (a full disk): tried in every round. Only
  // RunOnce's, as are the next three.
  std::vector<NodeLease> expired_;
  HealthTracker health_;
  absl::Duration watched_ = -absl::InfiniteDuration();
  // Until when the run time of an attempt with a limit is accounted for.
  std::map<AttemptId, absl::Duration> accounted_;

  // Held while the view reads the database: only Snapshot's callers wait for it.
  absl::Mutex view_mu_;
  ClusterView view_ ABSL_GUARDED_BY(view_mu_);
  QuarantineTracker quarantine_;  // after the view; only RunOnce's

  Monitor mu_;
  bool woken_ ABSL_GUARDED_BY(mu_) = false;

  Thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SCHEDULER_LOOP_H_
