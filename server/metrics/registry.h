// The coordinator's numbers for Prometheus. Counters and histograms live here; everything that is a
// state (jobs, devices, the steps of live jobs) is read when it is scraped, so that the series of a
// job disappear with it.
#ifndef SWITCHYARD_SERVER_METRICS_REGISTRY_H_
#define SWITCHYARD_SERVER_METRICS_REGISTRY_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "prometheus/collectable.h"

namespace switchyard {

// The newest step of one live job.
struct JobStats {
  std::string job;
  double step = 0, total_steps = 0, loss = 0, grad_norm = 0, learning_rate = 0;
  double tokens_per_second = 0, supervised_tokens_per_second = 0, memory_bytes = 0, mfu_ratio = 0;
  double skipped_steps = 0, expert_load_ratio = 0;
  double timestamp_seconds = 0;
};

// States at one instant.
struct LiveStats {
  std::map<std::string, int> jobs;                             // by state, all states
  std::map<std::string, int> nodes;                            // by state
  std::map<std::pair<std::string, std::string>, int> devices;  // by kind and state
  std::map<std::string, absl::Time> heartbeats;                // by node
  std::vector<JobStats> live_jobs;                             // at most a few hundred
  int watchers = 0;
  double checkpoints = 0, checkpoint_bytes = 0;  // committed
};

// Thread-safe.
class Metrics {
 public:
  // `sqlite_affected`: the SQLite library has the WAL-reset bug.
  explicit Metrics(bool sqlite_affected);
  ~Metrics();

  void RpcDone(const std::string& method, const std::string& code, double seconds);
  void CommitDone(double seconds);
  void JobSubmitted(const std::string& project);
  void JobFinished(const std::string& outcome, const std::string& reason);
  void QueueWait(double seconds);
  void StartTime(double seconds);
  void AttemptEnded(const std::string& state, const std::string& reason);
  void LeaseExpired();
  void StaleReports(double count);
  void CheckpointCommitDone(double seconds);
  void CheckpointStored(double bytes);
  void CheckpointDownloaded(double bytes);
  void CheckpointDeleted(const std::string& cause);
  void CheckpointRejected(const std::string& cause);

  // What is asked at every scrape, on the scraping thread. Before traffic.
  void SetLiveSource(std::function<LiveStats()> source);

  const std::vector<std::shared_ptr<prometheus::Collectable>>& collectables() const {
    return collectables_;
  }

 private:
  struct Families;
  class LiveCollector;
  std::unique_ptr<Families> families_;
  std::shared_ptr<LiveCollector> live_;
  std::vector<std::shared_ptr<prometheus::Collectable>> collectables_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_METRICS_REGISTRY_H_
