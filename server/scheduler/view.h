// The scheduler's picture of the cluster, kept current by reading only what commits have changed: a
// queue of 100,000 jobs is read once.
#ifndef SWITCHYARD_SERVER_SCHEDULER_VIEW_H_
#define SWITCHYARD_SERVER_SCHEDULER_VIEW_H_

#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/snapshot.h"
#include "server/store/store.h"

namespace switchyard {

// Not thread-safe.
class ClusterView {
 public:
  // Listens to the store's commits from now on.
  explicit ClusterView(Store& store);

  // Reads what has changed. `reachable`: leased nodes, and whether they were heard from lately.
  // `now` is monotonic. A failure changes nothing that a later call does not make good.
  absl::Status Refresh(absl::Duration now, const std::map<NodeId, bool>& reachable);

  // As of the last Refresh.
  const ClusterSnapshot& snapshot() const { return snapshot_; }
  // Jobs that hold devices, with what they need.
  const std::map<JobId, JobView>& live() const { return live_; }
  // For the next decision.
  void SetHolds(std::vector<Hold> holds) { snapshot_.holds = std::move(holds); }

 private:
  // What the writer's thread notes; shared, because the store may outlive the view.
  struct Dirty {
    absl::Mutex mu;
    bool all ABSL_GUARDED_BY(mu) = true;
    std::set<JobId> jobs ABSL_GUARDED_BY(mu);
    std::set<NodeId> nodes ABSL_GUARDED_BY(mu);
  };
  struct Backoff {
    int32_t attempt = 0;
    absl::Duration end;
  };
  // Order of the queue.
  static bool Before(const WaitingJob& a, const WaitingJob& b);

  absl::Status ReadNodes(bool all, const std::set<NodeId>& changed);
  void PutNode(const NodeRecord& record);
  void PutJobs(absl::Duration now, std::vector<JobView> jobs);
  WaitingJob ToWaiting(absl::Duration now, const JobView& job);
  void RemoveWaiting(const std::set<JobId>& ids);
  void PutGang(absl::Duration now, const JobView& job);
  void RemoveGang(const JobId& id);
  void Mark(const std::vector<GangMember>& members, bool busy);
  NodeView* FindNode(const NodeId& id);

  Store& store_;
  const std::shared_ptr<Dirty> dirty_ = std::make_shared<Dirty>();
  ClusterSnapshot snapshot_;
  std::map<JobId, JobView> live_;
  std::unordered_map<std::string, size_t> gang_index_;  // job -> in snapshot_.gangs
  std::unordered_map<std::string, std::pair<int32_t, int64_t>> waiting_keys_;  // -> priority, seq
  // When a job's backoff ends. Counted from when this process first saw it: a restart waits again
  // rather than trust the wall clock.
  std::unordered_map<std::string, Backoff> backoffs_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SCHEDULER_VIEW_H_
