#include "worker/agent/metrics.h"

#include <utility>

#include "prometheus/metric_family.h"
#include "worker/agent/config.h"
#include "worker/agent/host_stats.h"

namespace switchyard {
namespace {

using Labels = std::vector<std::pair<std::string, std::string>>;

class FamilyBuilder {
 public:
  FamilyBuilder(const std::string& name, const std::string& help, prometheus::MetricType type) {
    family_.name = name;
    family_.help = help;
    family_.type = type;
  }
  FamilyBuilder& Add(double value, const Labels& labels = {}) {
    prometheus::ClientMetric metric;
    for (const auto& [name, text] : labels) metric.label.push_back({name, text});
    if (family_.type == prometheus::MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    family_.metric.push_back(std::move(metric));
    return *this;
  }
  prometheus::MetricFamily Build() { return std::move(family_); }

 private:
  prometheus::MetricFamily family_;
};

FamilyBuilder Gauge(const std::string& name, const std::string& help) {
  return FamilyBuilder("switchyard_agent_" + name, help, prometheus::MetricType::Gauge);
}

FamilyBuilder Counter(const std::string& name, const std::string& help) {
  return FamilyBuilder("switchyard_agent_" + name, help, prometheus::MetricType::Counter);
}

void AppendGauges(const AgentSnapshot& snapshot, std::vector<prometheus::MetricFamily>& families) {
  families.push_back(Gauge("devices", "Devices of this node by state.")
                         .Add(snapshot.free_devices, {{"state", "free"}})
                         .Add(snapshot.busy_devices, {{"state", "busy"}})
                         .Add(snapshot.withheld_devices, {{"state", "withheld"}})
                         .Build());
  families.push_back(Gauge("live_attempts", "Attempts that have not finished on this node.")
                         .Add(static_cast<double>(snapshot.attempts.size()))
                         .Build());
  families.push_back(Gauge("reports_pending", "Reports that the coordinator has not acknowledged.")
                         .Add(static_cast<double>(snapshot.pending_reports))
                         .Build());
  families.push_back(Counter("log_gap_bytes_total", "Log bytes dropped because the disk was full.")
                         .Add(static_cast<double>(snapshot.dropped_log_bytes))
                         .Build());
  families.push_back(Gauge("connected", "Whether this agent is registered at its coordinator.")
                         .Add(snapshot.connected ? 1 : 0)
                         .Build());
  families.push_back(
      Gauge("last_heartbeat_ack_timestamp_seconds",
            "When the coordinator last acknowledged a heartbeat; 0: never.")
          .Add(absl::ToDoubleSeconds(snapshot.last_heartbeat_ack - absl::UnixEpoch()))
          .Build());
  const HostMemory memory = ReadHostMemory();
  families.push_back(Gauge("node_memory_bytes", "Memory of this machine.")
                         .Add(static_cast<double>(memory.total_bytes), {{"kind", "total"}})
                         .Add(static_cast<double>(memory.available_bytes), {{"kind", "available"}})
                         .Build());
  if (snapshot.attempts.empty()) return;
  FamilyBuilder resident =
      Gauge("job_resident_bytes", "Host memory in use by a job's trainers on this node.");
  FamilyBuilder cpu = Gauge("job_processor_seconds",
                            "Processor time used so far by a job's live trainers on this node.");
  for (const auto& [attempt, pids] : snapshot.attempts) {
    ProcessUsage sum;
    for (const pid_t pid : pids) {
      const ProcessUsage usage = ReadProcessUsage(pid);
      sum.cpu_seconds += usage.cpu_seconds;
      sum.resident_bytes += usage.resident_bytes;
    }
    resident.Add(static_cast<double>(sum.resident_bytes), {{"job", attempt.job.value()}});
    cpu.Add(sum.cpu_seconds, {{"job", attempt.job.value()}});
  }
  families.push_back(resident.Build());
  families.push_back(cpu.Build());
}

}  // namespace

void AgentMetrics::SetSource(std::function<AgentSnapshot()> source) {
  absl::MutexLock lock(&source_mu_);
  source_ = std::move(source);
}

void AgentMetrics::TrainerStarted() {
  absl::MutexLock lock(&mu_);
  ++trainers_started_;
}

void AgentMetrics::GangStarted(const AttemptId& attempt) {
  absl::MutexLock lock(&mu_);
  if (attempt.number > 1) ++restarts_;
}

void AgentMetrics::ObserveStep(const AttemptId& attempt, const StepFrame& step) {
  absl::MutexLock lock(&mu_);
  last_steps_[attempt] = step;
  const auto stall = step.phase_seconds.find("checkpoint");
  checkpoint_stalls_[attempt] += stall == step.phase_seconds.end() ? 0 : stall->second;
}

void AgentMetrics::AttemptFinished(const AttemptId& attempt, AttemptOutcome outcome) {
  absl::MutexLock lock(&mu_);
  ++finished_[static_cast<int>(outcome)];
  last_steps_.erase(attempt);
  checkpoint_stalls_.erase(attempt);
}

std::vector<prometheus::MetricFamily> AgentMetrics::Collect() const {
  std::vector<prometheus::MetricFamily> families;
  families.push_back(
      Gauge("build_info", "1, with the version.").Add(1, {{"version", kAgentVersion}}).Build());
  {
    absl::MutexLock source_lock(&source_mu_);
    if (source_) AppendGauges(source_(), families);
  }
  absl::MutexLock lock(&mu_);
  families.push_back(Counter("trainers_started_total", "Trainer processes started.")
                         .Add(static_cast<double>(trainers_started_))
                         .Build());
  families.push_back(
      Counter("trainer_restarts_total", "Gangs started for an attempt after a job's first.")
          .Add(static_cast<double>(restarts_))
          .Build());
  families.push_back(Counter("attempts_finished_total", "Attempts that ended here, by outcome.")
                         .Add(static_cast<double>(finished_[0]), {{"outcome", "succeeded"}})
                         .Add(static_cast<double>(finished_[1]), {{"outcome", "stopped"}})
                         .Add(static_cast<double>(finished_[2]), {{"outcome", "failed"}})
                         .Build());
  if (last_steps_.empty()) return families;
  FamilyBuilder step = Gauge("job_step", "Optimizer steps done by a job whose rank 0 is here.");
  FamilyBuilder loss = Gauge("job_loss", "Training loss of the last step.");
  FamilyBuilder speed =
      Gauge("job_tokens_per_second", "Tokens per second of the last step, all ranks.");
  FamilyBuilder memory = Gauge("job_memory_bytes", "Peak memory of the fullest rank.");
  FamilyBuilder failures =
      Gauge("job_checkpoint_failures", "Checkpoints of the attempt that could not be written.");
  FamilyBuilder stalls = Gauge("job_checkpoint_stall_seconds",
                               "Time for which the attempt's training stood still to save.");
  for (const auto& [attempt, frame] : last_steps_) {
    const Labels labels = {{"job", attempt.job.value()}};
    step.Add(static_cast<double>(frame.step), labels);
    loss.Add(frame.loss, labels);
    speed.Add(frame.tokens_per_second, labels);
    memory.Add(static_cast<double>(frame.memory_bytes), labels);
    failures.Add(static_cast<double>(frame.checkpoint_failures), labels);
    stalls.Add(checkpoint_stalls_.at(attempt), labels);
  }
  for (FamilyBuilder* family : {&step, &loss, &speed, &memory, &failures, &stalls}) {
    families.push_back(family->Build());
  }
  return families;
}

}  // namespace switchyard
