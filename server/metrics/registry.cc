#include "server/metrics/registry.h"

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace switchyard {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

const prometheus::Histogram::BucketBoundaries kFast = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
                                                       0.05,   0.1,   0.25,   0.5,   1,    5};
const prometheus::Histogram::BucketBoundaries kCommit = {0.005, 0.025, 0.1, 0.5, 1,  2.5,
                                                         5,     10,    30,  60,  300};
const prometheus::Histogram::BucketBoundaries kSlow = {0.1, 0.5, 1,   5,    10,   30,
                                                       60,  300, 900, 3600, 14400};

class GaugeFamily {
 public:
  GaugeFamily(const char* name, const char* help) {
    family_.name = name;
    family_.help = help;
    family_.type = MetricType::Gauge;
  }
  void Add(std::vector<ClientMetric::Label> labels, double value) {
    ClientMetric metric;
    metric.label = std::move(labels);
    metric.gauge.value = value;
    family_.metric.push_back(std::move(metric));
  }
  MetricFamily Take() { return std::move(family_); }

 private:
  MetricFamily family_;
};

struct JobGauge {
  const char* name;
  const char* help;
  double JobStats::*field;
};
constexpr JobGauge kJobGauges[] = {
    {"switchyard_job_step", "Optimizer steps done.", &JobStats::step},
    {"switchyard_job_target_steps", "Optimizer steps that the job wants to do.",
     &JobStats::total_steps},
    {"switchyard_job_loss", "Loss of the newest step.", &JobStats::loss},
    {"switchyard_job_grad_norm", "Global gradient norm before clipping.", &JobStats::grad_norm},
    {"switchyard_job_learning_rate", "Learning rate of the newest step.", &JobStats::learning_rate},
    {"switchyard_job_tokens_per_second", "Real tokens per second, all ranks.",
     &JobStats::tokens_per_second},
    {"switchyard_job_supervised_tokens_per_second",
     "Tokens that count in the loss per second, all ranks.",
     &JobStats::supervised_tokens_per_second},
    {"switchyard_job_memory_bytes", "Peak memory of the fullest rank.", &JobStats::memory_bytes},
    {"switchyard_job_mfu_ratio", "Model FLOPs utilization; 0 where it is unknown.",
     &JobStats::mfu_ratio},
    {"switchyard_job_skipped_steps", "Steps without an update because of a non-finite value.",
     &JobStats::skipped_steps},
    {"switchyard_job_expert_load_ratio", "Load of the busiest expert over the mean; worst layer.",
     &JobStats::expert_load_ratio},
    {"switchyard_job_last_step_timestamp_seconds", "When the newest step ended.",
     &JobStats::timestamp_seconds},
};

}  // namespace

class Metrics::LiveCollector final : public prometheus::Collectable {
 public:
  void SetSource(std::function<LiveStats()> source) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    source_ = std::move(source);
  }

  std::vector<MetricFamily> Collect() const override ABSL_LOCKS_EXCLUDED(mu_) {
    std::function<LiveStats()> source;
    {
      absl::MutexLock lock(&mu_);
      source = source_;
    }
    if (!source) return {};
    const LiveStats stats = source();
    std::vector<MetricFamily> out;

    GaugeFamily jobs("switchyard_jobs", "Jobs by state.");
    for (const auto& [state, n] : stats.jobs) jobs.Add({{"state", state}}, n);
    out.push_back(jobs.Take());
    GaugeFamily nodes("switchyard_nodes", "Registered nodes by state.");
    for (const auto& [state, n] : stats.nodes) nodes.Add({{"state", state}}, n);
    out.push_back(nodes.Take());
    GaugeFamily devices("switchyard_devices", "Devices of leased nodes by kind and state.");
    for (const auto& [key, n] : stats.devices) {
      devices.Add({{"kind", key.first}, {"state", key.second}}, n);
    }
    if (!stats.devices.empty()) out.push_back(devices.Take());
    GaugeFamily heartbeats("switchyard_agent_last_heartbeat_timestamp_seconds",
                           "When each node was last heard from.");
    for (const auto& [node, time] : stats.heartbeats) {
      if (time != absl::InfinitePast()) {
        heartbeats.Add({{"node", node}}, absl::ToDoubleSeconds(time - absl::UnixEpoch()));
      }
    }
    if (!stats.heartbeats.empty()) out.push_back(heartbeats.Take());
    GaugeFamily watchers("switchyard_event_watchers", "Open watch and log streams.");
    watchers.Add({}, stats.watchers);
    out.push_back(watchers.Take());
    GaugeFamily checkpoints("switchyard_checkpoints", "Committed checkpoints of all jobs.");
    checkpoints.Add({}, stats.checkpoints);
    out.push_back(checkpoints.Take());
    GaugeFamily stored("switchyard_checkpoint_stored_bytes", "Bytes of committed checkpoints.");
    stored.Add({}, stats.checkpoint_bytes);
    out.push_back(stored.Take());

    for (const JobGauge& gauge : kJobGauges) {
      GaugeFamily family(gauge.name, gauge.help);
      for (const JobStats& job : stats.live_jobs) family.Add({{"job", job.job}}, job.*gauge.field);
      if (!stats.live_jobs.empty()) out.push_back(family.Take());
    }
    return out;
  }

 private:
  mutable absl::Mutex mu_;
  std::function<LiveStats()> source_ ABSL_GUARDED_BY(mu_);
};

struct Metrics::Families {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();

  prometheus::Family<prometheus::Counter>& Counters(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(*registry);
  }
  prometheus::Family<prometheus::Histogram>& Histograms(const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(*registry);
  }

  prometheus::Family<prometheus::Counter>& rpc_requests =
      Counters("switchyard_rpc_requests_total", "Calls by method and code; streams when they end.");
  prometheus::Family<prometheus::Histogram>& rpc_seconds =
      Histograms("switchyard_rpc_seconds", "Duration of unary calls.");
  prometheus::Histogram& commit_seconds =
      Histograms("switchyard_db_commit_seconds", "Duration of database commits, fsync included.")
          .Add({}, kFast);
  prometheus::Family<prometheus::Counter>& submitted =
      Counters("switchyard_jobs_submitted_total", "Jobs stored, by project.");
  prometheus::Family<prometheus::Counter>& finished =
      Counters("switchyard_jobs_finished_total", "Jobs that became final.");
  prometheus::Histogram& queue_wait =
      Histograms("switchyard_queue_wait_seconds", "From creation to the first placement.")
          .Add({}, kSlow);
  prometheus::Histogram& start_time =
      Histograms("switchyard_start_seconds", "From placement until every rank runs.")
          .Add({}, kSlow);
  prometheus::Family<prometheus::Counter>& attempts =
      Counters("switchyard_attempts_total", "Attempts that ended, by state and reason.");
  prometheus::Counter& lease_expired =
      Counters("switchyard_lease_expired_total", "Node leases that ended.").Add({});
  prometheus::Counter& stale =
      Counters("switchyard_stale_attempt_rejected_total", "Reports about closed attempts.").Add({});
  prometheus::Histogram& checkpoint_seconds =
      Histograms("switchyard_checkpoint_commit_seconds", "Verification and publication.")
          .Add({}, kCommit);
  prometheus::Counter& checkpoint_bytes =
      Counters("switchyard_checkpoint_bytes_total", "Bytes of published checkpoints.").Add({});
  prometheus::Counter& checkpoint_downloaded =
      Counters("switchyard_checkpoint_download_bytes_total", "Bytes sent to clients.").Add({});
  prometheus::Family<prometheus::Counter>& checkpoint_deleted =
      Counters("switchyard_checkpoints_deleted_total", "Checkpoints given up, by cause.");
  prometheus::Family<prometheus::Counter>& checkpoint_rejected =
      Counters("switchyard_checkpoint_rejected_total", "Checkpoints refused, by cause.");
};

Metrics::Metrics(bool sqlite_affected)
    : families_(std::make_unique<Families>()), live_(std::make_shared<LiveCollector>()) {
  prometheus::BuildGauge()
      .Name("switchyard_build_info")
      .Help("Constant 1, labelled by version.")
      .Register(*families_->registry)
      .Add({{"version", SY_VERSION}})
      .Set(1);
  prometheus::BuildGauge()
      .Name("switchyard_build_sqlite_affected")
      .Help("1: this SQLite has the WAL-reset bug; the coordinator works around it.")
      .Register(*families_->registry)
      .Add({})
      .Set(sqlite_affected ? 1 : 0);
  for (const char* outcome : {"SUCCEEDED", "FAILED", "CANCELLED"}) {
    families_->finished.Add({{"outcome", outcome}, {"reason", ""}});
  }
  for (const char* cause : {"CHECKPOINT_REJECTED", "DAMAGED", "STALE_ATTEMPT"}) {
    families_->checkpoint_rejected.Add({{"cause", cause}});
  }
  for (const char* cause : {"retention", "request"}) {
    families_->checkpoint_deleted.Add({{"cause", cause}});
  }
  collectables_ = {families_->registry, live_};
}

Metrics::~Metrics() = default;

void Metrics::RpcDone(const std::string& method, const std::string& code, double seconds) {
  families_->rpc_requests.Add({{"method", method}, {"code", code}}).Increment();
  if (seconds >= 0) families_->rpc_seconds.Add({{"method", method}}, kFast).Observe(seconds);
}
void Metrics::CommitDone(double seconds) { families_->commit_seconds.Observe(seconds); }
void Metrics::JobSubmitted(const std::string& project) {
  families_->submitted.Add({{"project", project}}).Increment();
}
void Metrics::JobFinished(const std::string& outcome, const std::string& reason) {
  families_->finished.Add({{"outcome", outcome}, {"reason", reason}}).Increment();
}
void Metrics::QueueWait(double seconds) { families_->queue_wait.Observe(seconds); }
void Metrics::StartTime(double seconds) { families_->start_time.Observe(seconds); }
void Metrics::AttemptEnded(const std::string& state, const std::string& reason) {
  families_->attempts.Add({{"state", state}, {"reason", reason}}).Increment();
}
void Metrics::LeaseExpired() { families_->lease_expired.Increment(); }
void Metrics::StaleReports(double count) { families_->stale.Increment(count); }
void Metrics::CheckpointCommitDone(double seconds) {
  families_->checkpoint_seconds.Observe(seconds);
}
void Metrics::CheckpointStored(double bytes) { families_->checkpoint_bytes.Increment(bytes); }
void Metrics::CheckpointDownloaded(double bytes) {
  families_->checkpoint_downloaded.Increment(bytes);
}
void Metrics::CheckpointDeleted(const std::string& cause) {
  families_->checkpoint_deleted.Add({{"cause", cause}}).Increment();
}
void Metrics::CheckpointRejected(const std::string& cause) {
  families_->checkpoint_rejected.Add({{"cause", cause}}).Increment();
}
void Metrics::SetLiveSource(std::function<LiveStats()> source) {
  live_->SetSource(std::move(source));
}

}  // namespace switchyard
