#include "server/api/agent_gateway.h"

#include <google/protobuf/util/json_util.h>
#include <sys/stat.h>

#include <algorithm>
#include <iterator>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/api/convert.h"
#include "server/error.h"

namespace switchyard {
namespace {

absl::Status CheckIdentity(const NodeLease& from) {
  const std::string& node = from.node.value();
  const std::string& incarnation = from.incarnation.value();
  const bool node_ok =
      !node.empty() && node.size() <= 253 && std::all_of(node.begin(), node.end(), [](char c) {
        return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' ||
               c == '_';
      });
  if (node_ok && !incarnation.empty() && incarnation.size() <= 128) return absl::OkStatus();
  return MakeError(
      absl::StatusCode::kInvalidArgument, "IDENTITY_INVALID",
      absl::StrCat("node '", node, "', incarnation '", incarnation,
                   "': both are needed; a node name has letters, digits, '-', '.', '_'"));
}

absl::Status StaleIncarnation(const absl::Status& status, const NodeLease& lease) {
  return WithReason(status, "STALE_INCARNATION",
                    {{"node", lease.node.value()}, {"incarnation", lease.incarnation.value()}});
}

AgentHome HomeOf(const NodeRecord& node) {
  return {node.boot_id, node.state_folder, node.agent_id, node.boots};
}

template <typename Request>
NodeLease SenderOf(const Request& request) {
  return {NodeId(request.node()), Incarnation(request.incarnation())};
}

std::vector<AttemptId> ToIds(const google::protobuf::RepeatedPtrField<v1::AttemptRef>& refs) {
  std::vector<AttemptId> out;
  for (const v1::AttemptRef& ref : refs) out.push_back(FromProto(ref));
  return out;
}

// <job_dir>/job.json, before the first node hears of the job.
absl::Status WriteSpec(const std::string& folder, const v1::JobSpec& spec) {
  const std::string path = absl::StrCat(folder, "/job.json");
  struct stat st;
  if (::stat(path.c_str(), &st) == 0) return absl::OkStatus();
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  options.add_whitespace = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(spec, &json, options).ok()) {
    return absl::InternalError("bug: a job spec has no JSON form");
  }
  RETURN_IF_ERROR(MakeFolders(folder));
  return ReplaceFile(path, json);
}

}  // namespace

absl::Status RestoreState(Store& store, LeaseTable& leases, Publisher& publisher) {
  RETURN_IF_ERROR(publisher.Recover());
  ASSIGN_OR_RETURN(const std::vector<NodeRecord> nodes, store.ListNodes());
  for (const NodeRecord& node : nodes) {
    if (!node.lost) leases.Restore({node.id, node.incarnation}, HomeOf(node), node.lease_ttl);
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::RegisterResponse> AgentGateway::Register(const v1::RegisterRequest& request) {
  NodeRecord node = FromProto(request);
  node.lease_ttl = lease_config_.ttl;
  const NodeLease lease{node.id, node.incarnation};
  RETURN_IF_ERROR(CheckIdentity(lease));
  std::set<int32_t> indices;
  for (const DeviceRecord& device : node.devices) {
    if (device.kind.empty() || !indices.insert(device.index).second) {
      return MakeError(absl::StatusCode::kInvalidArgument, "DEVICES_INVALID",
                       absl::StrCat("register node ", node.id.value(), ": device ", device.index,
                                    " has no kind or is there twice"));
    }
  }
  RETURN_IF_ERROR(leases_.Acquire(lease, HomeOf(node)));
  ASSIGN_OR_RETURN(const RegisterResult result,
                   store_.RegisterNode(node, ToIds(request.live_attempts())));
  SY_LOG(INFO) << "node registered node=" << node.id << " incarnation=" << node.incarnation
               << " devices=" << node.devices.size() << " version=" << node.version;
  v1::RegisterResponse response;
  response.set_coordinator_epoch(store_.epoch());
  *response.mutable_heartbeat_interval() = ToProto(lease_config_.heartbeat);
  *response.mutable_lease_ttl() = ToProto(lease_config_.ttl);
  response.set_acknowledged_report(result.acknowledged_report);
  for (const AttemptId& id : result.stale) *response.add_stale_attempts() = ToProto(id);
  return response;
}

absl::Status AgentGateway::WriteLogs(const NodeLease& from, const v1::ReportRequest& request) {
  std::map<AttemptId, bool> open;
  for (const v1::Report& report : request.reports()) {
    if (!report.has_log()) continue;
    const AttemptId id{JobId(report.job()), report.attempt()};
    const auto [it, is_new] = open.try_emplace(id, false);
    if (is_new) {
      const absl::Status fence = store_.CheckFence(from.node, from.incarnation, id);
      it->second = fence.ok();
      if (!fence.ok() && !absl::IsAborted(fence)) return fence;
    }
    if (!it->second) continue;
    const v1::LogChunk& log = report.log();
    const absl::Status written =
        logs_.Write(id.job, {id.number, log.rank(), log.stream(), log.offset()}, log.data());
    if (absl::IsInvalidArgument(written)) {
      // Would be refused for ever; everything after it matters more.
      SY_LOG(ERROR) << "log chunk dropped node=" << from.node << " error=" << written.message();
    } else if (!written.ok()) {
      return written;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::ReportResponse> AgentGateway::Report(const v1::ReportRequest& request) {
  const NodeLease from = SenderOf(request);
  RETURN_IF_ERROR(CheckIdentity(from));
  std::vector<ReportRecord> reports;
  for (const v1::Report& report : request.reports()) {
    absl::StatusOr<ReportRecord> record = FromProto(report);
    if (!record.ok()) {
      SY_LOG(ERROR) << "report ignored node=" << from.node
                    << " error=" << record.status().message();
      record = ReportRecord{report.number(), {JobId(report.job()), report.attempt()}, LogReport{}};
    }
    reports.push_back(*std::move(record));
  }
  // Bytes first, then the record that acknowledges them.
  RETURN_IF_ERROR(WriteLogs(from, request));
  ASSIGN_OR_RETURN(const ReportResult result,
                   store_.RecordReports(from.node, from.incarnation, reports));
  v1::ReportResponse response;
  response.set_acknowledged(result.acknowledged);
  for (const AttemptId& id : result.stale) *response.add_stale_attempts() = ToProto(id);
  return response;
}

absl::StatusOr<CheckpointRecord> AgentGateway::CommitCheckpoint(
    const v1::CommitCheckpointRequest& request) {
  const NodeLease from = SenderOf(request);
  RETURN_IF_ERROR(CheckIdentity(from));
  CommitRequest commit;
  commit.node = from.node;
  commit.incarnation = from.incarnation;
  ASSIGN_OR_RETURN(commit.checkpoint.job, ParseJobName(request.job()));
  commit.checkpoint.attempt = request.attempt();
  commit.checkpoint.step = request.step();
  commit.checkpoint.staging_path = request.staging_path();
  commit.checkpoint.manifest_crc32c = request.manifest_crc32c();
  commit.checkpoint.final = request.final();
  commit.checkpoint.loss = request.loss();
  commit.checkpoint.validation_loss = request.validation_loss();
  return publisher_.Commit(commit);
}

absl::Status AgentSession::Heartbeat(const v1::SessionRequest& request) {
  const NodeLease from = SenderOf(request);
  RETURN_IF_ERROR(CheckIdentity(from));
  bool first = false;
  {
    absl::MutexLock lock(&mu_);
    if (lease_ && !(*lease_ == from)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "IDENTITY_INVALID",
                       "a session belongs to one incarnation of one node");
    }
    RETURN_IF_ERROR(StaleIncarnation(gateway_.leases_.Renew(from), from));
    first = !lease_;
    lease_ = from;
    heartbeat_ = std::max(heartbeat_, request.heartbeat());
    live_ = ToIds(request.live_attempts());
    ack_due_ = true;
  }
  if (!first) return absl::OkStatus();
  // It has had the answer to its registration, or there would be no session.
  const absl::Status settled =
      gateway_.store_.SettleLease(from.node, from.incarnation, gateway_.lease_config_.ttl);
  if (!settled.ok()) SY_LOG(WARNING) << "lease not settled node=" << from.node << " " << settled;
  return absl::OkStatus();
}

absl::optional<NodeLease> AgentSession::lease() const {
  absl::MutexLock lock(&mu_);
  return lease_;
}

absl::StatusOr<absl::optional<v1::SessionResponse>> AgentSession::Next(bool orders_changed) {
  orders_dirty_ = orders_dirty_ || orders_changed;
  NodeLease lease;
  std::vector<AttemptId> live;
  absl::optional<v1::SessionResponse> message;
  {
    absl::MutexLock lock(&mu_);
    if (!lease_) return message;
    if (std::exchange(ack_due_, false)) {
      message.emplace().mutable_heartbeat_ack()->set_heartbeat(heartbeat_);
    }
    lease = *lease_;
    live = live_;
  }
  if (!message) {
    absl::StatusOr<absl::optional<v1::SessionResponse>> order = NextOrder(lease, live);
    if (!order.ok()) orders_dirty_ = true;
    RETURN_IF_ERROR(order.status());
    message = *std::move(order);
  }
  if (message) message->set_coordinator_epoch(gateway_.store_.epoch());
  return message;
}

absl::StatusOr<absl::optional<v1::SessionResponse>> AgentSession::NextOrder(
    const NodeLease& lease, const std::vector<AttemptId>& live) {
  absl::optional<v1::SessionResponse> message;
  if (orders_dirty_) {
    orders_dirty_ = false;
    ASSIGN_OR_RETURN(auto orders, gateway_.store_.TakeOrders(lease.node, lease.incarnation));
    orders_.assign(std::make_move_iterator(orders.begin()), std::make_move_iterator(orders.end()));
  }
  while (!orders_.empty()) {
    const OrderRecord order = std::move(orders_.front());
    orders_.pop_front();
    const Sent kind = absl::holds_alternative<AssignOrder>(order.what)  ? Sent::kAssign
                      : absl::holds_alternative<StartOrder>(order.what) ? Sent::kStart
                                                                        : Sent::kStop;
    // A later order may leave less time; it is never sent to leave more.
    absl::Duration grace = absl::InfiniteDuration();
    if (kind == Sent::kStop) grace = absl::get<StopOrder>(order.what).grace;
    const auto sent = sent_.find({order.attempt, kind});
    if (sent != sent_.end() && sent->second <= grace) continue;
    const std::string folder = JobFolder(gateway_.artifact_root_, order.attempt.job);
    ASSIGN_OR_RETURN(message, ToProto(order, folder));
    if (kind == Sent::kAssign) RETURN_IF_ERROR(WriteSpec(folder, message->assign().spec()));
    sent_[{order.attempt, kind}] = grace;
    return message;
  }
  if (live.empty()) return message;
  ASSIGN_OR_RETURN(const std::vector<AttemptId> stale, gateway_.store_.FindStale(lease.node, live));
  for (const AttemptId& id : stale) {
    if (!sent_.try_emplace({id, Sent::kKill}, absl::ZeroDuration()).second) continue;
    ASSIGN_OR_RETURN(
        message,
        ToProto(OrderRecord{id, StopOrder{absl::ZeroDuration(), "stale attempt", false}}, ""));
    return message;
  }
  return message;
}

}  // namespace switchyard
