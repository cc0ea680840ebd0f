#include "server/store/rows.h"

#include <limits>

#include "base/json.h"
#include "base/log.h"

namespace switchyard {
namespace {

// What the store wrote itself parses; anything else is damage that quick_check cannot see.
Json ParseOwn(const std::string& text) {
  absl::StatusOr<Json> json = ParseJson(text, "a column of the database");
  SY_CHECK(json.ok()) << json.status().ToString();
  return *std::move(json);
}

template <typename T>
T Get(const Json& json, absl::string_view key, T fallback = {}) {
  return JsonGetOr<T>(json, key, fallback).value_or(fallback);
}

FailureRecord FailureFromRow(const std::string& text) {
  const Json json = ParseOwn(text);
  FailureRecord failure;
  failure.reason =
      ParseFailureReason(Get<std::string>(json, "reason")).value_or(FailureReason::kInternal);
  failure.message = Get<std::string>(json, "message");
  failure.rank = static_cast<int32_t>(Get<int64_t>(json, "rank", -1));
  failure.node = Get<std::string>(json, "node");
  failure.exit_code = static_cast<int32_t>(Get<int64_t>(json, "exit_code"));
  failure.signal = static_cast<int32_t>(Get<int64_t>(json, "signal"));
  failure.last_lines = Get<std::vector<std::string>>(json, "last_lines");
  failure.step = Get<int64_t>(json, "step");
  const Json* cascade = JsonFind(json, "cascade");
  for (const Json& c : cascade != nullptr ? *cascade : Json::array()) {
    failure.cascade.push_back(
        {ParseFailureReason(Get<std::string>(c, "reason")).value_or(FailureReason::kInternal),
         static_cast<int32_t>(Get<int64_t>(c, "rank", -1)), Get<std::string>(c, "node"),
         Get<std::string>(c, "message")});
  }
  return failure;
}

std::vector<std::string> TextsFromRow(const std::string& text) {
  // Nearly always; parsing 100,000 of them would be seen in the start of the scheduler.
  if (text == "[]") return {};
  std::vector<std::string> out;
  for (const Json& item : ParseOwn(text)) {
    if (item.is_string()) out.push_back(item.get<std::string>());
  }
  return out;
}

double RealOrNan(const Query& row, int column) {
  return row.IsNull(column) ? std::numeric_limits<double>::quiet_NaN() : row.RealAt(column);
}

}  // namespace

int64_t ToRow(absl::Time time) { return absl::ToUnixMicros(time); }
absl::Time TimeFromRow(int64_t micros) { return absl::FromUnixMicros(micros); }

std::string ToRow(const std::map<std::string, std::string>& labels) {
  Json json = Json::object();
  for (const auto& [key, value] : labels) json[key] = value;
  return DumpJson(json);
}

std::string ToRow(const std::vector<std::string>& texts) { return DumpJson(Json(texts)); }

std::string ToRow(const FailureRecord& failure) {
  Json cascade = Json::array();
  for (const CascadeRecord& c : failure.cascade) {
    cascade.push_back({{"reason", std::string(Name(c.reason))},
                       {"rank", c.rank},
                       {"node", c.node},
                       {"message", c.message}});
  }
  return DumpJson({{"reason", std::string(Name(failure.reason))},
                   {"message", failure.message},
                   {"rank", failure.rank},
                   {"node", failure.node},
                   {"exit_code", failure.exit_code},
                   {"signal", failure.signal},
                   {"last_lines", failure.last_lines},
                   {"step", failure.step},
                   {"cascade", std::move(cascade)}});
}

std::string ToRow(const std::vector<int32_t>& devices) { return DumpJson(Json(devices)); }

std::string ToRow(const std::vector<DeviceRecord>& devices) {
  Json json = Json::array();
  for (const DeviceRecord& d : devices) {
    json.push_back(
        {{"index", d.index}, {"kind", d.kind}, {"memory_bytes", d.memory_bytes}, {"uuid", d.uuid}});
  }
  return DumpJson(json);
}

const char kJobColumns[] =
    "seq, name, uid, project, display_name, labels, spec, recipe, num_ranks, cpu_only, "
    "max_retries, keep_last, resumable, version, state, pending, message, stop_target, "
    "stop_grace_ms, current_attempt, retries_used, backoff_ms, failure, validation_loss, "
    "create_time, update_time, start_time, end_time, priority, max_run_time_ms, max_user_retries, "
    "no_progress_limit, checkpoint_every, stop_reason, user_retries_used, no_progress, "
    "progress_step, fingerprint, avoided, run_time_ms, free_failures, fell_back, keep_every, "
    "keep_best, restore_from, first_event";

JobRecord ReadJob(const Query& row) {
  JobRecord job;
  int c = 0;
  job.seq = row.IntAt(c++);
  job.id = JobId(row.TextAt(c++));
  job.uid = row.TextAt(c++);
  job.project = row.TextAt(c++);
  job.display_name = row.TextAt(c++);
  const Json labels = ParseOwn(row.TextAt(c++));
  for (const auto& item : labels.items()) {
    job.labels[item.key()] = Get<std::string>(labels, item.key());
  }
  job.spec = row.TextAt(c++);
  job.recipe = row.TextAt(c++);
  job.needs.num_ranks = static_cast<int32_t>(row.IntAt(c++));
  job.needs.cpu_only = row.IntAt(c++) != 0;
  job.needs.max_retries = static_cast<int32_t>(row.IntAt(c++));
  job.needs.retention.keep_last = static_cast<int32_t>(row.IntAt(c++));
  job.needs.resumable = row.IntAt(c++) != 0;
  job.version = row.IntAt(c++);
  job.state = static_cast<JobState>(row.IntAt(c++));
  job.pending = static_cast<PendingReason>(row.IntAt(c++));
  job.message = row.TextAt(c++);
  job.stop_target = static_cast<StopTarget>(row.IntAt(c++));
  job.stop_grace = absl::Milliseconds(row.IntAt(c++));
  job.current_attempt = static_cast<int32_t>(row.IntAt(c++));
  job.retry.retries_used = static_cast<int32_t>(row.IntAt(c++));
  job.backoff = absl::Milliseconds(row.IntAt(c++));
  if (!row.IsNull(c)) job.failure = FailureFromRow(row.TextAt(c));
  ++c;
  if (!row.IsNull(c)) job.validation_loss = row.RealAt(c);
  ++c;
  job.create_time = TimeFromRow(row.IntAt(c++));
  job.update_time = TimeFromRow(row.IntAt(c++));
  if (!row.IsNull(c)) job.start_time = TimeFromRow(row.IntAt(c));
  ++c;
  if (!row.IsNull(c)) job.end_time = TimeFromRow(row.IntAt(c));
  ++c;
  job.needs.priority = static_cast<int32_t>(row.IntAt(c++));
  job.needs.max_run_time = absl::Milliseconds(row.IntAt(c++));
  job.needs.max_user_retries = static_cast<int32_t>(row.IntAt(c++));
  job.needs.no_progress_limit = static_cast<int32_t>(row.IntAt(c++));
  job.needs.checkpoint_every = row.IntAt(c++);
  job.stop_reason = static_cast<StopReason>(row.IntAt(c++));
  job.retry.user_retries_used = static_cast<int32_t>(row.IntAt(c++));
  job.retry.no_progress = static_cast<int32_t>(row.IntAt(c++));
  job.retry.progress_step = row.IntAt(c++);
  job.retry.fingerprint = row.TextAt(c++);
  job.retry.avoided = TextsFromRow(row.TextAt(c++));
  job.run_time = absl::Milliseconds(row.IntAt(c++));
  job.retry.free_failures = static_cast<int32_t>(row.IntAt(c++));
  job.retry.fell_back = row.IntAt(c++) != 0;
  job.needs.retention.keep_every = row.IntAt(c++);
  job.needs.retention.keep_best = static_cast<int32_t>(row.IntAt(c++));
  job.needs.restore_from = row.TextAt(c++);
  job.first_event = row.IntAt(c++);
  return job;
}

const char kJobViewColumns[] =
    "name, seq, version, state, pending, current_attempt, num_ranks, cpu_only, priority, "
    "resumable, "
    "backoff_ms, max_run_time_ms, run_time_ms, checkpoint_every, stop_grace_ms, avoided";

JobView ReadJobView(const Query& row) {
  JobView job;
  int c = 0;
  job.id = JobId(row.TextAt(c++));
  job.seq = row.IntAt(c++);
  job.version = row.IntAt(c++);
  job.state = static_cast<JobState>(row.IntAt(c++));
  job.pending = static_cast<PendingReason>(row.IntAt(c++));
  job.attempt = static_cast<int32_t>(row.IntAt(c++));
  job.num_ranks = static_cast<int32_t>(row.IntAt(c++));
  job.cpu_only = row.IntAt(c++) != 0;
  job.priority = static_cast<int32_t>(row.IntAt(c++));
  job.resumable = row.IntAt(c++) != 0;
  job.backoff = absl::Milliseconds(row.IntAt(c++));
  job.max_run_time = absl::Milliseconds(row.IntAt(c++));
  job.run_time = absl::Milliseconds(row.IntAt(c++));
  job.checkpoint_every = row.IntAt(c++);
  job.stop_grace = absl::Milliseconds(row.IntAt(c++));
  for (std::string& node : TextsFromRow(row.TextAt(c++))) job.avoided.emplace_back(std::move(node));
  return job;
}

const char kAttemptColumns[] =
    "job, number, state, started, resume_from, failure, create_time, end_time, stop_reason";

AttemptRecord ReadAttempt(const Query& row) {
  AttemptRecord attempt;
  attempt.id = {JobId(row.TextAt(0)), static_cast<int32_t>(row.IntAt(1))};
  attempt.state = static_cast<AttemptState>(row.IntAt(2));
  attempt.started = row.IntAt(3) != 0;
  attempt.resume_from = row.TextAt(4);
  if (!row.IsNull(5)) attempt.failure = FailureFromRow(row.TextAt(5));
  attempt.create_time = TimeFromRow(row.IntAt(6));
  if (!row.IsNull(7)) attempt.end_time = TimeFromRow(row.IntAt(7));
  attempt.stop_reason = static_cast<StopReason>(row.IntAt(8));
  return attempt;
}

const char kPlacementColumns[] =
    "job, attempt, node, node_rank, first_rank, devices, phase, port, succeeded, stopped";

PlacementRecord ReadPlacement(const Query& row) {
  PlacementRecord p;
  p.attempt = {JobId(row.TextAt(0)), static_cast<int32_t>(row.IntAt(1))};
  p.node = NodeId(row.TextAt(2));
  p.node_rank = static_cast<int32_t>(row.IntAt(3));
  p.first_rank = static_cast<int32_t>(row.IntAt(4));
  for (const Json& device : ParseOwn(row.TextAt(5))) {
    p.devices.push_back(device.is_number_integer() ? device.get<int32_t>() : -1);
  }
  p.phase = static_cast<PlacementPhase>(row.IntAt(6));
  p.port = static_cast<int32_t>(row.IntAt(7));
  p.succeeded = row.IntAt(8) != 0;
  p.stopped = row.IntAt(9) != 0;
  return p;
}

const char kCheckpointColumns[] =
    "job, step, attempt, state, path, staging_path, manifest_crc32c, size_bytes, loss, "
    "validation_loss, final, create_time, commit_seq, pinned";

CheckpointRecord ReadCheckpoint(const Query& row) {
  CheckpointRecord c;
  c.job = JobId(row.TextAt(0));
  c.step = row.IntAt(1);
  c.attempt = static_cast<int32_t>(row.IntAt(2));
  c.state = static_cast<CheckpointState>(row.IntAt(3));
  c.path = row.TextAt(4);
  c.staging_path = row.TextAt(5);
  c.manifest_crc32c = static_cast<uint32_t>(row.IntAt(6));
  c.size_bytes = row.IntAt(7);
  c.loss = RealOrNan(row, 8);
  c.validation_loss = RealOrNan(row, 9);
  c.final = row.IntAt(10) != 0;
  c.create_time = TimeFromRow(row.IntAt(11));
  c.commit_seq = row.IntAt(12);
  c.pinned = row.IntAt(13) != 0;
  return c;
}

const char kNodeColumns[] =
    "name, incarnation, boot_id, address, version, devices, lost, acknowledged_report, "
    "state_folder, scheduling, scheduling_message, agent_id, boots, lease_ttl_ms, "
    "coalesce((SELECT level FROM quarantines q WHERE q.node = nodes.name), 0), "
    "coalesce((SELECT message FROM quarantines q WHERE q.node = nodes.name), '')";

NodeRecord ReadNode(const Query& row) {
  NodeRecord node;
  node.id = NodeId(row.TextAt(0));
  node.incarnation = Incarnation(row.TextAt(1));
  node.boot_id = row.TextAt(2);
  node.address = row.TextAt(3);
  node.version = row.TextAt(4);
  for (const Json& d : ParseOwn(row.TextAt(5))) {
    node.devices.push_back({static_cast<int32_t>(Get<int64_t>(d, "index")),
                            Get<std::string>(d, "kind"), Get<int64_t>(d, "memory_bytes"),
                            Get<std::string>(d, "uuid")});
  }
  node.lost = row.IntAt(6) != 0;
  node.acknowledged_report = row.IntAt(7);
  node.state_folder = row.TextAt(8);
  node.scheduling = static_cast<NodeScheduling>(row.IntAt(9));
  node.scheduling_message = row.TextAt(10);
  node.agent_id = row.TextAt(11);
  node.boots = row.IntAt(12);
  node.lease_ttl = absl::Milliseconds(row.IntAt(13));
  node.quarantine = {static_cast<int32_t>(row.IntAt(14)), row.TextAt(15)};
  return node;
}

}  // namespace switchyard
