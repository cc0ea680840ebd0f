// The scheduler's one thread: expires leases, takes a snapshot, decides, applies.
#ifndef SWITCHYARD_SERVER_SCHEDULER_LOOP_H_
#define SWITCHYARD_SERVER_SCHEDULER_LOOP_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/thread.h"
#include "server/scheduler/lease.h"
#include "server/snapshot.h"
#include "server/store/store.h"

namespace switchyard {

class SchedulerLoop {
 public:
  // `resume_path` answers the newest usable checkpoint of a job, or nothing; it may read files.
  // `on_expired` is called for each lease that ended, once that is stored.
  SchedulerLoop(Store& store, LeaseTable& leases, Clock& clock,
                std::function<std::string(const JobRecord&)> resume_path,
                std::function<void(const NodeId&)> on_expired);

  // Starts the thread. Not before recovery is done.
  void Start();
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

  // Something changed. Thread-safe, never blocks.
  void Wake() ABSL_LOCKS_EXCLUDED(mu_);

  // One round. Called by the thread; by tests without Start().
  absl::Status RunOnce();

  // What Decide would see now; PlanJob asks the same question. Thread-safe.
  absl::StatusOr<ClusterSnapshot> Snapshot() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Loop(const StopToken& stop) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Duration NotBefore(const JobRecord& job) ABSL_LOCKS_EXCLUDED(mu_);

  Store& store_;
  LeaseTable& leases_;
  Clock& clock_;
  const std::function<std::string(const JobRecord&)> resume_path_;
  const std::function<void(const NodeId&)> on_expired_;

  // Leases that ended and whose loss is not stored yet (a full disk): tried in every round. Only
  // RunOnce's.
  std::vector<NodeLease> expired_;

  absl::Mutex mu_;
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
  // When a job's backoff ends, by job and attempt. Counted from when this process first saw it: a
  // restart waits again rather than trust the wall clock.
  std::map<AttemptId, absl::Duration> not_before_ ABSL_GUARDED_BY(mu_);

  Thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SCHEDULER_LOOP_H_
