#include "server/api/convert.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "server/error.h"

namespace switchyard {
namespace {

// The enums of the domain are the wire's; one assertion per end of each is enough, because the
// names are compared in the tests.
static_assert(static_cast<int>(JobState::kCancelled) == v1::Job::CANCELLED);
static_assert(static_cast<int>(AttemptState::kLost) == v1::Attempt::LOST);
static_assert(static_cast<int>(PendingReason::kEngineQueue) == v1::PENDING_REASON_ENGINE_QUEUE);
static_assert(static_cast<int>(StopTarget::kFailed) == v1::STOP_TARGET_FAILED);
static_assert(static_cast<int>(FailureReason::kInternal) == v1::INTERNAL);
static_assert(static_cast<int>(StopReason::kPolicy) == v1::STOP_REASON_POLICY);
static_assert(static_cast<int>(ConditionType::kDraining) == v1::Condition::DRAINING);
static_assert(static_cast<int>(NodeScheduling::kDraining) == v1::Node::DRAINING);

absl::Status Corrupt(absl::string_view what) {
  return absl::InternalError(absl::StrCat("bug: the stored ", what, " does not parse"));
}

v1::Progress ProgressOf(const JobRecord& job, const v1::StepMetrics& step,
                        int64_t last_checkpoint_step) {
  v1::Progress progress;
  progress.set_step(step.step());
  progress.set_total_steps(step.total_steps());
  progress.set_epoch(step.epoch());
  progress.set_loss(step.loss());
  progress.set_grad_norm(step.grad_norm());
  progress.set_learning_rate(step.learning_rate());
  progress.set_tokens_per_second(step.tokens_per_second());
  progress.set_supervised_tokens_per_second(step.supervised_tokens_per_second());
  progress.set_memory_bytes(step.memory_bytes());
  if (job.state == JobState::kRunning && step.total_steps() >= step.step()) {
    *progress.mutable_time_left() = ToProto(
        absl::Seconds(static_cast<double>(step.total_steps() - step.step()) * step.step_seconds()));
  }
  progress.set_validation_loss(job.validation_loss.value_or(0));
  progress.set_last_checkpoint_step(last_checkpoint_step);
  return progress;
}

struct OrderToProto {
  const AttemptId& id;
  const std::string& job_dir;
  v1::SessionResponse& out;

  absl::Status operator()(const AssignOrder& order) const {
    v1::Assign* assign = out.mutable_assign();
    assign->set_job(id.job.value());
    assign->set_attempt(id.number);
    assign->set_job_uid(order.job_uid);
    if (!assign->mutable_spec()->ParseFromString(order.spec)) return Corrupt("job spec");
    assign->set_node_rank(order.node_rank);
    assign->set_num_nodes(order.num_nodes);
    assign->set_first_rank(order.first_rank);
    assign->mutable_devices()->Add(order.devices.begin(), order.devices.end());
    assign->set_world_size(order.world_size);
    assign->set_job_dir(job_dir);
    assign->set_resume_from(order.resume_from);
    return absl::OkStatus();
  }
  absl::Status operator()(const StartOrder& order) const {
    v1::Start* start = out.mutable_start();
    start->set_job(id.job.value());
    start->set_attempt(id.number);
    start->set_master_address(order.master_address);
    start->set_master_port(order.master_port);
    return absl::OkStatus();
  }
  absl::Status operator()(const StopOrder& order) const {
    v1::Stop* stop = out.mutable_stop();
    stop->set_job(id.job.value());
    stop->set_attempt(id.number);
    *stop->mutable_grace_period() = ToProto(order.grace);
    stop->set_reason(order.reason);
    stop->set_checkpoint(order.checkpoint);
    return absl::OkStatus();
  }
};

absl::Status BadName(absl::string_view name, absl::string_view form) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_NAME",
                   absl::StrCat("'", name, "' is not of the form ", form,
                                ", with parts of a-z, 0-9 and -, at most 63 long"),
                   {{"name", std::string(name)}});
}

}  // namespace

google::protobuf::Timestamp ToProto(absl::Time time) {
  const int64_t micros = absl::ToUnixMicros(time);
  google::protobuf::Timestamp out;
  int64_t seconds = micros / 1000000;
  if (micros % 1000000 < 0) --seconds;
  out.set_seconds(seconds);
  out.set_nanos(static_cast<int32_t>(micros - seconds * 1000000) * 1000);
  return out;
}
absl::Time FromProto(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}
google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration out;
  absl::Duration rest;
  out.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &rest));
  out.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  return out;
}
absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

namespace {

constexpr size_t kMaxCascade = 16;

// An agent newer than this coordinator may name a cause that we do not know yet.
FailureReason FromProto(v1::FailureReason reason) {
  return v1::FailureReason_IsValid(reason) && reason != v1::FAILURE_REASON_UNSPECIFIED
             ? static_cast<FailureReason>(reason)
             : FailureReason::kExitUnknown;
}

// The rank that the others waited for, and how its busy time compares with the median.
void FindSlowRank(const v1::StepMetrics& step, StepReport& out) {
  if (step.rank_busy_seconds_size() < 2) return;
  const std::vector<double> busy(step.rank_busy_seconds().begin(), step.rank_busy_seconds().end());
  std::vector<double> sorted = busy;
  // The lower one of two in the middle: of two ranks, the faster is the measure.
  const size_t middle = (sorted.size() - 1) / 2;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<int64_t>(middle), sorted.end());
  const double median = sorted[middle];
  const auto slowest = std::max_element(busy.begin(), busy.end());
  if (!(median > 0) || !std::isfinite(*slowest)) return;
  out.slow_rank = static_cast<int32_t>(slowest - busy.begin());
  out.slow_ratio = *slowest / median;
}

}  // namespace

v1::Failure ToProto(const FailureRecord& failure) {
  v1::Failure out;
  out.set_reason(static_cast<v1::FailureReason>(failure.reason));
  out.set_message(failure.message);
  out.set_rank(failure.rank);
  out.set_node(failure.node);
  out.set_exit_code(failure.exit_code);
  out.set_signal(failure.signal);
  for (const std::string& line : failure.last_lines) out.add_last_lines(line);
  out.set_step(failure.step);
  for (const CascadeRecord& c : failure.cascade) {
    v1::CascadedFailure& cascaded = *out.add_cascade();
    cascaded.set_reason(static_cast<v1::FailureReason>(c.reason));
    cascaded.set_rank(c.rank);
    cascaded.set_node(c.node);
    cascaded.set_message(c.message);
  }
  return out;
}
FailureRecord FromProto(const v1::Failure& failure) {
  FailureRecord out;
  out.reason = FromProto(failure.reason());
  out.message = failure.message();
  out.rank = failure.rank();
  out.node = failure.node();
  out.exit_code = failure.exit_code();
  out.signal = failure.signal();
  const int first = std::max(0, failure.last_lines_size() - 20);
  out.last_lines.assign(failure.last_lines().begin() + first, failure.last_lines().end());
  out.step = failure.step();
  for (const v1::CascadedFailure& c : failure.cascade()) {
    if (out.cascade.size() == kMaxCascade) break;
    out.cascade.push_back({FromProto(c.reason()), c.rank(), c.node(), c.message()});
  }
  return out;
}

v1::Device ToProto(const DeviceRecord& device) {
  v1::Device out;
  out.set_index(device.index);
  out.set_kind(device.kind);
  out.set_memory_bytes(device.memory_bytes);
  out.set_uuid(device.uuid);
  return out;
}
DeviceRecord FromProto(const v1::Device& device) {
  return {device.index(), device.kind(), device.memory_bytes(), device.uuid()};
}

v1::AttemptRef ToProto(const AttemptId& id) {
  v1::AttemptRef out;
  out.set_job(id.job.value());
  out.set_attempt(id.number);
  return out;
}
AttemptId FromProto(const v1::AttemptRef& ref) { return {JobId(ref.job()), ref.attempt()}; }

v1::Job::State ToProto(JobState state) { return static_cast<v1::Job::State>(state); }
JobState FromProto(v1::Job::State state) { return static_cast<JobState>(state); }

v1::Attempt ToProto(const AttemptRecord& attempt) {
  v1::Attempt out;
  out.set_name(absl::StrCat(attempt.id.job.value(), "/attempts/", attempt.id.number));
  out.set_number(attempt.id.number);
  out.set_state(static_cast<v1::Attempt::State>(attempt.state));
  for (const std::string& node : attempt.nodes) out.add_nodes(node);
  if (attempt.failure) *out.mutable_failure() = ToProto(*attempt.failure);
  *out.mutable_create_time() = ToProto(attempt.create_time);
  if (attempt.end_time) *out.mutable_end_time() = ToProto(*attempt.end_time);
  out.set_stop_reason(static_cast<v1::StopReason>(attempt.stop_reason));
  out.set_resume_from(attempt.resume_from);
  return out;
}

v1::Node ToProto(const NodeRecord& node) {
  v1::Node out;
  out.set_name(node.id.value());
  out.set_scheduling(static_cast<v1::Node::Scheduling>(node.scheduling));
  out.set_scheduling_message(node.scheduling_message);
  out.set_quarantine(node.quarantine.message);
  out.set_address(node.address);
  out.set_version(node.version);
  for (const DeviceRecord& device : node.devices) *out.add_devices() = ToProto(device);
  return out;
}

v1::AuditRecord ToProto(const AuditRecord& record) {
  v1::AuditRecord out;
  out.set_sequence(record.seq);
  *out.mutable_time() = ToProto(record.time);
  out.set_actor(record.actor);
  out.set_action(record.action);
  out.set_target(record.target);
  out.set_message(record.message);
  return out;
}

v1::Event ToProto(const EventRecord& event) {
  v1::Event out;
  out.set_sequence(event.job_seq);
  *out.mutable_time() = ToProto(event.time);
  out.set_kind(event.kind);
  out.set_message(event.message);
  out.set_state(ToProto(event.state));
  out.set_attempt(event.attempt);
  return out;
}

v1::Checkpoint ToProto(const CheckpointRecord& checkpoint) {
  v1::Checkpoint out;
  out.set_name(absl::StrCat(checkpoint.job.value(), "/checkpoints/step-", checkpoint.step));
  out.set_step(checkpoint.step);
  out.set_path(checkpoint.path);
  out.set_size_bytes(checkpoint.size_bytes);
  out.set_attempt(checkpoint.attempt);
  out.set_loss(checkpoint.loss);
  out.set_validation_loss(checkpoint.validation_loss);
  out.set_final(checkpoint.final);
  out.set_pinned(checkpoint.pinned);
  *out.mutable_create_time() = ToProto(checkpoint.create_time);
  return out;
}

absl::StatusOr<v1::StepMetrics> StepMetricsOf(const StepRecord& step) {
  v1::StepMetrics out;
  if (!out.ParseFromString(step.raw)) return Corrupt("step metrics");
  return out;
}

absl::StatusOr<v1::Job> ToProto(const JobRecord& job, const StepRecord& latest,
                                int64_t last_checkpoint_step,
                                const std::vector<ConditionRecord>& conditions) {
  v1::Job out;
  out.set_name(job.id.value());
  out.set_uid(job.uid);
  out.set_display_name(job.display_name);
  out.mutable_labels()->insert(job.labels.begin(), job.labels.end());
  if (!out.mutable_spec()->ParseFromString(job.spec)) return Corrupt("job spec");
  out.set_state(ToProto(job.state));
  out.set_pending_reason(static_cast<v1::PendingReason>(job.pending));
  out.set_state_message(job.message);
  out.set_stop_target(static_cast<v1::StopTarget>(job.stop_target));
  out.set_current_attempt(job.current_attempt);
  if (job.failure) *out.mutable_failure() = ToProto(*job.failure);
  if (latest.id != 0) {
    ASSIGN_OR_RETURN(const v1::StepMetrics step, StepMetricsOf(latest));
    *out.mutable_progress() = ProgressOf(job, step, last_checkpoint_step);
  }
  out.set_etag(absl::StrCat(job.version));
  *out.mutable_create_time() = ToProto(job.create_time);
  *out.mutable_update_time() = ToProto(job.update_time);
  if (job.start_time) *out.mutable_start_time() = ToProto(*job.start_time);
  if (job.end_time) *out.mutable_end_time() = ToProto(*job.end_time);
  out.set_recipe(job.recipe);
  for (const ConditionRecord& c : conditions) {
    v1::Condition& condition = *out.add_conditions();
    condition.set_type(static_cast<v1::Condition::Type>(c.type));
    condition.set_message(c.message);
    *condition.mutable_since() = ToProto(c.since);
  }
  out.set_stop_reason(static_cast<v1::StopReason>(job.stop_reason));
  v1::RetryState& retry = *out.mutable_retry();
  retry.set_retries_used(job.retry.retries_used);
  retry.set_user_retries_used(job.retry.user_retries_used);
  retry.set_attempts_without_progress(job.retry.no_progress);
  for (const std::string& node : job.retry.avoided) retry.add_avoided_nodes(node);
  return out;
}

JobNeeds NeedsOf(const v1::JobSpec& spec) {
  JobNeeds needs;
  needs.num_ranks = spec.parallel().num_ranks();
  needs.cpu_only = spec.parallel().cpu_only();
  needs.max_retries = spec.retry().max_retries();
  needs.retention.keep_last = spec.checkpoint().keep_last();
  needs.retention.keep_every = spec.checkpoint().keep_every_steps();
  needs.retention.keep_best = spec.checkpoint().keep_best();
  needs.resumable = spec.checkpoint().save_optimizer();
  needs.max_user_retries = spec.retry().max_user_retries();
  if (spec.retry().no_progress_limit() > 0) {
    needs.no_progress_limit = spec.retry().no_progress_limit();
  }
  needs.priority = spec.schedule().priority();
  needs.max_run_time = FromProto(spec.schedule().max_run_time());
  needs.checkpoint_every = spec.checkpoint().every_steps();
  needs.restore_from = spec.checkpoint().restore_from();
  return needs;
}

NodeRecord FromProto(const v1::RegisterRequest& request) {
  NodeRecord node;
  node.id = NodeId(request.node());
  node.incarnation = Incarnation(request.incarnation());
  node.boot_id = request.boot_id();
  node.state_folder = request.state_folder();
  node.agent_id = request.agent_id();
  node.boots = request.boots();
  node.address = request.address();
  node.version = request.version();
  for (const v1::Device& device : request.devices()) node.devices.push_back(FromProto(device));
  return node;
}

absl::StatusOr<ReportRecord> FromProto(const v1::Report& report) {
  ReportRecord out;
  out.number = report.number();
  out.attempt = {JobId(report.job()), report.attempt()};
  switch (report.what_case()) {
    case v1::Report::kPrepared:
      out.what = PreparedReport{report.prepared().port(), report.prepared().data_report()};
      return out;
    case v1::Report::kRunning:
      out.what = RunningReport{};
      return out;
    case v1::Report::kStep: {
      StepReport step{report.step().step(), report.step().SerializeAsString(), absl::nullopt};
      step.step_seconds = report.step().step_seconds();
      FindSlowRank(report.step(), step);
      if (report.step().has_validation_loss() && std::isfinite(report.step().validation_loss())) {
        step.validation_loss = report.step().validation_loss();
      }
      out.what = std::move(step);
      return out;
    }
    case v1::Report::kLog:
      out.what = LogReport{};
      return out;
    case v1::Report::kFinished: {
      FinishedReport finished{report.finished().succeeded(), report.finished().stopped(),
                              absl::nullopt};
      if (report.finished().has_failure()) {
        finished.failure = FromProto(report.finished().failure());
      }
      out.what = std::move(finished);
      return out;
    }
    case v1::Report::kEvent:
      out.what = EventReport{report.event().kind(), report.event().message()};
      return out;
    case v1::Report::kLogGap: {
      const v1::LogGap& gap = report.log_gap();
      const std::string who = gap.rank() < 0 ? "prep" : absl::StrCat("rank ", gap.rank());
      out.what =
          EventReport{"WARNING", absl::StrCat("log of ", who, ": ", gap.bytes(), " bytes of ",
                                              gap.stream(), " from ", gap.offset(),
                                              " on were dropped; the node's disk is full")};
      return out;
    }
    case v1::Report::kRankFailed:
      out.what = RankFailedReport{FromProto(report.rank_failed().failure())};
      return out;
    case v1::Report::WHAT_NOT_SET:
      break;
  }
  return absl::UnimplementedError(
      absl::StrCat("report ", report.number(), " says nothing this coordinator knows"));
}

absl::StatusOr<v1::SessionResponse> ToProto(const OrderRecord& order, const std::string& job_dir) {
  v1::SessionResponse out;
  RETURN_IF_ERROR(absl::visit(OrderToProto{order.attempt, job_dir, out}, order.what));
  return out;
}

JobStats StatsOf(const JobRecord& job, const v1::StepMetrics& step) {
  JobStats stats;
  stats.job = job.id.value();
  stats.step = static_cast<double>(step.step());
  stats.total_steps = static_cast<double>(step.total_steps());
  stats.loss = step.loss();
  stats.grad_norm = step.grad_norm();
  stats.learning_rate = step.learning_rate();
  stats.tokens_per_second = step.tokens_per_second();
  stats.supervised_tokens_per_second = step.supervised_tokens_per_second();
  stats.memory_bytes = static_cast<double>(step.memory_bytes());
  stats.mfu_ratio = step.mfu();
  stats.skipped_steps = static_cast<double>(step.skipped_total());
  stats.expert_load_ratio = step.expert_load_max_over_mean();
  stats.timestamp_seconds = absl::ToDoubleSeconds(FromProto(step.time()) - absl::UnixEpoch());
  return stats;
}

bool IsResourceId(absl::string_view id) {
  return !id.empty() && id.size() <= 63 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
  });
}

absl::StatusOr<std::string> ParseParent(absl::string_view parent) {
  const std::vector<absl::string_view> parts = absl::StrSplit(parent, '/');
  if (parts.size() != 2 || parts[0] != "projects" || !IsResourceId(parts[1])) {
    return BadName(parent, "projects/{project}");
  }
  return std::string(parts[1]);
}

absl::StatusOr<JobId> ParseJobName(absl::string_view name) {
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '/');
  if (parts.size() != 4 || parts[0] != "projects" || !IsResourceId(parts[1]) ||
      parts[2] != "jobs" || !IsResourceId(parts[3])) {
    return BadName(name, "projects/{project}/jobs/{job}");
  }
  return JobId(std::string(name));
}

absl::StatusOr<CheckpointName> ParseCheckpointName(const std::string& name) {
  const std::string middle_part = "/checkpoints/step-";
  const size_t middle = name.find(middle_part);
  CheckpointName out;
  if (middle != std::string::npos) {
    const absl::StatusOr<JobId> job = ParseJobName(name.substr(0, middle));
    const std::string step = name.substr(middle + middle_part.size());
    // As it is printed: no sign, no space, no zero before it.
    if (job.ok() && absl::SimpleAtoi(step, &out.step) && absl::StrCat(out.step) == step &&
        out.step >= 0) {
      out.job = *job;
      return out;
    }
  }
  return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_NAME_INVALID",
                   absl::StrCat("'", absl::CHexEscape(name.substr(0, 200)),
                                "' is not projects/{project}/jobs/{job}/checkpoints/step-{step}"));
}

}  // namespace switchyard
