// AgentLink: decode, call, encode. Sessions are callbacks driven by the pump (stream_pump.h); the
// rest is synchronous.
#include <google/protobuf/util/json_util.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/api/context.h"
#include "server/api/convert.h"
#include "switchyard/v1/agent_link.grpc.pb.h"

namespace switchyard {
namespace {

constexpr absl::Duration kStallLimit = absl::Seconds(60);
// Orders that could not be read or prepared are tried again after this long.
constexpr absl::Duration kOrderRetry = absl::Seconds(2);
constexpr absl::Duration kIdle = absl::Seconds(30);

std::vector<AttemptId> ToIds(const google::protobuf::RepeatedPtrField<v1::AttemptRef>& refs) {
  std::vector<AttemptId> out;
  for (const v1::AttemptRef& ref : refs) out.push_back(FromProto(ref));
  return out;
}

absl::Status CheckIdentity(const std::string& node, const std::string& incarnation) {
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

// One agent's session: acknowledges heartbeats, and sends each order once per stream. What an agent
// missed is sent again by the stream after the next.
class Session final : public grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>,
                      public PumpedStream {
 public:
  Session(const ServiceContext& context, grpc::CallbackServerContext* call)
      : context_(context), call_(call), id_(context.pump.NewId()) {}

  void Start() {
    if (!context_.ready || !context_.pump.Add(id_, StreamKind::kSession, this, "")) {
      End(MakeError(absl::StatusCode::kUnavailable, "NOT_SERVING",
                    "the coordinator is starting or stopping; try again"));
      return;
    }
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    {
      absl::MutexLock lock(&mu_);
      if (!ok) {
        reads_done_ = true;
      } else if (failure_.ok()) {
        failure_ = TakeHeartbeat();
      }
      ok = ok && failure_.ok();
    }
    if (ok) StartRead(&request_);
    context_.pump.Wake(id_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) broken_ = true;
    writing_ = false;
    context_.pump.Wake(id_);
  }
  void OnCancel() override {
    broken_ = true;
    context_.pump.Wake(id_);
  }
  void OnDone() override { delete this; }

  absl::optional<absl::Duration> Step(const Wakeup& wakeup) override {
    const absl::Duration now = context_.clock.Monotonic();
    orders_dirty_ = orders_dirty_ || wakeup.topic_changed;
    if (writing_) {
      if (wakeup.stopping || now - last_write_ > kStallLimit) call_->TryCancel();
      return std::max(last_write_ + kStallLimit, now) + absl::Seconds(1);
    }
    absl::optional<v1::SessionResponse> message;
    absl::Status end;
    bool ended = broken_ || wakeup.stopping;
    std::vector<AttemptId> live;
    {
      absl::MutexLock lock(&mu_);
      ended = ended || reads_done_ || !failure_.ok();
      end = failure_;
      if (!ended && ack_due_) {
        message.emplace().mutable_heartbeat_ack()->set_heartbeat(heartbeat_);
        ack_due_ = false;
      }
      live = live_;
      if (lease_ && !topic_set_) {
        context_.pump.SetTopic(id_, TopicOf(lease_->node));
        topic_set_ = true;
      }
    }
    if (!ended && !message && topic_set_) {
      absl::StatusOr<absl::optional<v1::SessionResponse>> order = NextOrder(live);
      if (order.ok()) {
        message = *std::move(order);
      } else if (absl::IsAborted(order.status())) {
        end = order.status();
        ended = true;
      } else {
        SY_LOG(ERROR) << "orders failed node=" << lease_->node
                      << " error=" << order.status().message();
        orders_dirty_ = true;
        return now + kOrderRetry;
      }
    }
    if (ended) {
      if (end.ok() && wakeup.stopping) {
        end =
            MakeError(absl::StatusCode::kUnavailable, "NOT_SERVING", "the coordinator is stopping");
      }
      End(end);
      return absl::nullopt;
    }
    if (!message) return now + kIdle;
    response_ = *std::move(message);
    response_.set_coordinator_epoch(context_.store.epoch());
    writing_ = true;
    last_write_ = now;
    StartWrite(&response_);
    return now + kStallLimit + absl::Seconds(1);
  }

 private:
  enum class Sent { kAssign, kStart, kStop, kKill };

  absl::Status TakeHeartbeat() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    RETURN_IF_ERROR(CheckIdentity(request_.node(), request_.incarnation()));
    const NodeLease lease{NodeId(request_.node()), Incarnation(request_.incarnation())};
    if (lease_ && !(*lease_ == lease)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "IDENTITY_INVALID",
                       "a session belongs to one incarnation of one node");
    }
    RETURN_IF_ERROR(StaleIncarnation(context_.leases.Renew(lease), lease));
    if (!lease_) lease_ = lease;
    heartbeat_ = std::max(heartbeat_, request_.heartbeat());
    live_ = ToIds(request_.live_attempts());
    ack_due_ = true;
    return absl::OkStatus();
  }

  // The next order not yet sent on this stream. Pump's thread.
  absl::StatusOr<absl::optional<v1::SessionResponse>> NextOrder(
      const std::vector<AttemptId>& live) {
    if (orders_dirty_) {
      orders_dirty_ = false;
      ASSIGN_OR_RETURN(auto orders, context_.store.TakeOrders(lease_->node, lease_->incarnation));
      orders_.assign(std::make_move_iterator(orders.begin()),
                     std::make_move_iterator(orders.end()));
    }
    while (!orders_.empty()) {
      OrderRecord order = std::move(orders_.front());
      orders_.pop_front();
      const Sent kind = absl::holds_alternative<AssignOrder>(order.what)  ? Sent::kAssign
                        : absl::holds_alternative<StartOrder>(order.what) ? Sent::kStart
                                                                          : Sent::kStop;
      if (sent_.contains({order.attempt, kind})) continue;
      const std::string folder = JobFolder(context_.config.artifact_root, order.attempt.job);
      ASSIGN_OR_RETURN(v1::SessionResponse message, ToProto(order, folder));
      if (kind == Sent::kAssign) {
        RETURN_IF_ERROR(WriteSpec(folder, message.assign().spec()));
      }
      sent_.insert({order.attempt, kind});
      return absl::optional<v1::SessionResponse>(std::move(message));
    }
    if (live.empty()) return absl::optional<v1::SessionResponse>();
    ASSIGN_OR_RETURN(const std::vector<AttemptId> stale,
                     context_.store.FindStale(lease_->node, live));
    for (const AttemptId& id : stale) {
      if (!sent_.insert({id, Sent::kKill}).second) continue;
      OrderRecord order{id, StopOrder{absl::ZeroDuration(), "stale attempt", false}};
      ASSIGN_OR_RETURN(v1::SessionResponse message, ToProto(order, ""));
      return absl::optional<v1::SessionResponse>(std::move(message));
    }
    return absl::optional<v1::SessionResponse>();
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

  void End(const absl::Status& status) {
    context_.metrics.RpcDone("Session", absl::StatusCodeToString(status.code()), -1);
    Finish(ToGrpcStatus(status));  // last: OnDone may delete this at once
  }

  const ServiceContext& context_;
  grpc::CallbackServerContext* const call_;
  const uint64_t id_;
  v1::SessionRequest request_;  // between StartRead and OnReadDone: gRPC's

  // The pump's thread only.
  v1::SessionResponse response_;
  absl::Duration last_write_;
  bool topic_set_ = false;
  bool orders_dirty_ = true;
  std::deque<OrderRecord> orders_;  // at most two per open attempt of the node
  std::set<std::pair<AttemptId, Sent>> sent_;

  std::atomic<bool> writing_{false};
  std::atomic<bool> broken_{false};
  absl::Mutex mu_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  bool reads_done_ ABSL_GUARDED_BY(mu_) = false;
  absl::optional<NodeLease> lease_;  // written once, under mu_, before the topic is set
  int64_t heartbeat_ ABSL_GUARDED_BY(mu_) = 0;
  bool ack_due_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<AttemptId> live_ ABSL_GUARDED_BY(mu_);
};

class AgentLinkImpl final
    : public v1::AgentLink::WithCallbackMethod_Session<v1::AgentLink::Service> {
 public:
  explicit AgentLinkImpl(const ServiceContext& context) : context_(context) {}

  grpc::Status Register(grpc::ServerContext*, const v1::RegisterRequest* request,
                        v1::RegisterResponse* response) override {
    return context_.Unary("Register", [&] { return DoRegister(*request, *response); });
  }
  grpc::Status Report(grpc::ServerContext*, const v1::ReportRequest* request,
                      v1::ReportResponse* response) override {
    return context_.Unary("Report", [&] { return DoReport(*request, *response); });
  }
  grpc::Status CommitCheckpoint(grpc::ServerContext*, const v1::CommitCheckpointRequest* request,
                                v1::CommitCheckpointResponse* response) override {
    return context_.Unary("CommitCheckpoint", [&] { return DoCommit(*request, *response); });
  }
  grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>* Session(
      grpc::CallbackServerContext* call) override {
    auto* session = new switchyard::Session(context_, call);  // deletes itself in OnDone
    session->Start();
    return session;
  }

 private:
  absl::Status DoRegister(const v1::RegisterRequest& request, v1::RegisterResponse& response) {
    RETURN_IF_ERROR(CheckIdentity(request.node(), request.incarnation()));
    std::set<int32_t> indices;
    for (const v1::Device& device : request.devices()) {
      if (device.kind().empty() || !indices.insert(device.index()).second) {
        return MakeError(absl::StatusCode::kInvalidArgument, "DEVICES_INVALID",
                         absl::StrCat("register node ", request.node(), ": device ", device.index(),
                                      " has no kind or is there twice"));
      }
    }
    const NodeRecord node = FromProto(request);
    const NodeLease lease{node.id, node.incarnation};
    RETURN_IF_ERROR(context_.leases.Acquire(lease, {node.boot_id, node.state_folder}));
    ASSIGN_OR_RETURN(const RegisterResult result,
                     context_.store.RegisterNode(node, ToIds(request.live_attempts())));
    SY_LOG(INFO) << "node registered node=" << node.id << " incarnation=" << node.incarnation
                 << " devices=" << node.devices.size() << " version=" << node.version;
    response.set_coordinator_epoch(context_.store.epoch());
    *response.mutable_heartbeat_interval() = ToProto(context_.lease_config.heartbeat);
    *response.mutable_lease_ttl() = ToProto(context_.lease_config.ttl);
    response.set_acknowledged_report(result.acknowledged_report);
    for (const AttemptId& id : result.stale) *response.add_stale_attempts() = ToProto(id);
    return absl::OkStatus();
  }

  // Bytes first, then the record that acknowledges them.
  absl::Status WriteLogs(const NodeId& node, const Incarnation& incarnation,
                         const v1::ReportRequest& request) {
    std::map<AttemptId, bool> open;
    for (const v1::Report& report : request.reports()) {
      if (!report.has_log()) continue;
      const AttemptId id{JobId(report.job()), report.attempt()};
      const auto [it, is_new] = open.try_emplace(id, false);
      if (is_new) {
        const absl::Status fence = context_.store.CheckFence(node, incarnation, id);
        it->second = fence.ok();
        if (!fence.ok() && !absl::IsAborted(fence)) return fence;
      }
      if (!it->second) continue;
      const v1::LogChunk& log = report.log();
      const absl::Status written = context_.logs.Write(
          id.job, {id.number, log.rank(), log.stream(), log.offset()}, log.data());
      if (absl::IsInvalidArgument(written)) {
        // Would be refused for ever; everything after it matters more.
        SY_LOG(ERROR) << "log chunk dropped node=" << node << " error=" << written.message();
      } else if (!written.ok()) {
        return written;
      }
    }
    return absl::OkStatus();
  }

  absl::Status DoReport(const v1::ReportRequest& request, v1::ReportResponse& response) {
    RETURN_IF_ERROR(CheckIdentity(request.node(), request.incarnation()));
    const NodeId node(request.node());
    const Incarnation incarnation(request.incarnation());
    std::vector<ReportRecord> reports;
    for (const v1::Report& report : request.reports()) {
      absl::StatusOr<ReportRecord> record = FromProto(report);
      if (!record.ok()) {
        SY_LOG(ERROR) << "report ignored node=" << node << " error=" << record.status().message();
        record =
            ReportRecord{report.number(), {JobId(report.job()), report.attempt()}, LogReport{}};
      }
      reports.push_back(*std::move(record));
    }
    RETURN_IF_ERROR(WriteLogs(node, incarnation, request));
    ASSIGN_OR_RETURN(const ReportResult result,
                     context_.store.RecordReports(node, incarnation, reports));
    response.set_acknowledged(result.acknowledged);
    for (const AttemptId& id : result.stale) *response.add_stale_attempts() = ToProto(id);
    return absl::OkStatus();
  }

  absl::Status DoCommit(const v1::CommitCheckpointRequest& request,
                        v1::CommitCheckpointResponse& response) {
    RETURN_IF_ERROR(CheckIdentity(request.node(), request.incarnation()));
    CommitRequest commit;
    commit.node = NodeId(request.node());
    commit.incarnation = Incarnation(request.incarnation());
    ASSIGN_OR_RETURN(commit.checkpoint.job, ParseJobName(request.job()));
    commit.checkpoint.attempt = request.attempt();
    commit.checkpoint.step = request.step();
    commit.checkpoint.staging_path = request.staging_path();
    commit.checkpoint.manifest_crc32c = request.manifest_crc32c();
    commit.checkpoint.final = request.final();
    commit.checkpoint.loss = request.loss();
    commit.checkpoint.validation_loss = request.validation_loss();
    const absl::Duration start = context_.clock.Monotonic();
    absl::StatusOr<CheckpointRecord> done = context_.publisher.Commit(commit);
    if (!done.ok()) {
      context_.metrics.CheckpointRejected(GetErrorDetails(done.status()).reason);
      return done.status();
    }
    context_.metrics.CheckpointCommitted(absl::ToDoubleSeconds(context_.clock.Monotonic() - start),
                                         static_cast<double>(done->size_bytes));
    *response.mutable_checkpoint() = ToProto(*done);
    return absl::OkStatus();
  }

  const ServiceContext context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAgentLink(const ServiceContext& context) {
  return std::make_unique<AgentLinkImpl>(context);
}

}  // namespace switchyard
