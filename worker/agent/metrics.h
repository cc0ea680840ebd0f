// The agent's Prometheus metrics. Counters are kept here; gauges are computed when they are asked
// for. Series of a job exist only while it runs here.
#ifndef SWITCHYARD_WORKER_AGENT_METRICS_H_
#define SWITCHYARD_WORKER_AGENT_METRICS_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/ids.h"
#include "prometheus/collectable.h"
#include "worker/link/messages.h"

namespace prometheus {
class Exposer;
}

namespace switchyard {

enum class AttemptOutcome { kSucceeded, kStopped, kFailed };

// The agent's state at one moment.
struct AgentSnapshot {
  int free_devices = 0;
  int busy_devices = 0;
  int withheld_devices = 0;  // in use by others
  int64_t dropped_log_bytes = 0;
  int64_t pending_reports = 0;
  absl::Time last_heartbeat_ack = absl::UnixEpoch();
  bool connected = false;
  // Live attempts with their trainers.
  std::map<AttemptId, std::vector<pid_t>> attempts;
};

// Thread-safe.
class AgentMetrics final : public prometheus::Collectable {
 public:
  // Where gauges come from. An empty function, the default, leaves them out; after the call
  // returns, the old one is not called any more.
  void SetSource(std::function<AgentSnapshot()> source) ABSL_LOCKS_EXCLUDED(source_mu_);

  void TrainerStarted() ABSL_LOCKS_EXCLUDED(mu_);
  // The trainers of an attempt are about to start; a restart when it is not the job's first.
  void GangStarted(const AttemptId& attempt) ABSL_LOCKS_EXCLUDED(mu_);
  void ObserveStep(const AttemptId& attempt, const StepFrame& step) ABSL_LOCKS_EXCLUDED(mu_);
  // Ends the attempt's series.
  void AttemptFinished(const AttemptId& attempt, AttemptOutcome outcome) ABSL_LOCKS_EXCLUDED(mu_);

  std::vector<prometheus::MetricFamily> Collect() const override
      ABSL_LOCKS_EXCLUDED(mu_, source_mu_);

 private:
  mutable absl::Mutex source_mu_ ABSL_ACQUIRED_BEFORE(mu_);
  std::function<AgentSnapshot()> source_ ABSL_GUARDED_BY(source_mu_);
  mutable absl::Mutex mu_;
  int64_t trainers_started_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t restarts_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t finished_[3] ABSL_GUARDED_BY(mu_) = {};  // by AttemptOutcome
  std::map<AttemptId, StepFrame> last_steps_ ABSL_GUARDED_BY(mu_);
  std::map<AttemptId, double> checkpoint_stalls_ ABSL_GUARDED_BY(mu_);  // seconds
};

// Serves /metrics over HTTP until destroyed.
class MetricsServer {
 public:
  // `listen`: HOST:PORT, port 0 chooses a free one. Errors: Unavailable: the address is taken.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(
      const std::string& listen, const std::shared_ptr<AgentMetrics>& metrics);
  ~MetricsServer();
  int port() const { return port_; }

 private:
  MetricsServer(std::string listen, std::unique_ptr<prometheus::Exposer> exposer, int port);
  const std::string listen_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  const int port_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_METRICS_H_
