// AdminService: decode, call, encode.
#include <algorithm>
#include <map>

#include "base/log.h"
#include "base/status_macros.h"
#include "server/api/context.h"
#include "server/api/convert.h"
#include "switchyard/v1/admin_service.grpc.pb.h"

namespace switchyard {
namespace {

// What the gangs of a drained node get for their last step and checkpoint.
constexpr absl::Duration kDrainGrace = absl::Seconds(120);
constexpr size_t kMaxMessage = 1024;

absl::Status CheckMessage(const std::string& message) {
  if (message.size() <= kMaxMessage) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, "MESSAGE_INVALID",
                   absl::StrCat("message has ", message.size(), " bytes, at most ", kMaxMessage));
}

class AdminServiceImpl final : public v1::AdminService::Service {
 public:
  explicit AdminServiceImpl(const ServiceContext& context) : context_(context) {}

  grpc::Status ListNodes(grpc::ServerContext*, const v1::ListNodesRequest*,
                         v1::ListNodesResponse* response) override {
    return context_.Unary("ListNodes", [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::vector<NodeRecord> nodes, context_.store.ListNodes());
      const Leases leases = ReadLeases();
      for (const NodeRecord& node : nodes) {
        ASSIGN_OR_RETURN(*response->add_nodes(), Show(node, leases));
      }
      return absl::OkStatus();
    });
  }
  grpc::Status CordonNode(grpc::ServerContext* call, const v1::CordonNodeRequest* request,
                          v1::CordonNodeResponse* response) override {
    return context_.Unary("CordonNode", [&] {
      return Schedule(*call, request->node(), NodeScheduling::kCordoned, request->message(),
                      *response->mutable_node());
    });
  }
  grpc::Status DrainNode(grpc::ServerContext* call, const v1::DrainNodeRequest* request,
                         v1::DrainNodeResponse* response) override {
    return context_.Unary("DrainNode", [&] {
      return Schedule(*call, request->node(), NodeScheduling::kDraining, request->message(),
                      *response->mutable_node());
    });
  }
  grpc::Status ResumeNode(grpc::ServerContext* call, const v1::ResumeNodeRequest* request,
                          v1::ResumeNodeResponse* response) override {
    return context_.Unary("ResumeNode", [&] {
      return Schedule(*call, request->node(), NodeScheduling::kActive, "",
                      *response->mutable_node());
    });
  }
  grpc::Status ConfirmNodeDead(grpc::ServerContext* call, const v1::ConfirmNodeDeadRequest* request,
                               v1::ConfirmNodeDeadResponse* response) override {
    return context_.Unary("ConfirmNodeDead", [&]() -> absl::Status {
      RETURN_IF_ERROR(CheckMessage(request->message()));
      const NodeId node(request->node());
      RETURN_IF_ERROR(context_.store.GetNode(node).status());
      // From here on the agent cannot renew: if it lives after all, it has to register again, and
      // is told to kill what it runs.
      RETURN_IF_ERROR(context_.leases.DropSilent(node));
      ASSIGN_OR_RETURN(const NodeRecord record,
                       context_.store.ConfirmNodeDead(node, call->peer(), request->message()));
      SY_LOG(WARNING) << "node confirmed dead node=" << node << " by=" << call->peer();
      ASSIGN_OR_RETURN(*response->mutable_node(), Show(record, ReadLeases()));
      return absl::OkStatus();
    });
  }
  grpc::Status ListAuditRecords(grpc::ServerContext*, const v1::ListAuditRecordsRequest* request,
                                v1::ListAuditRecordsResponse* response) override {
    return context_.Unary("ListAuditRecords", [&]() -> absl::Status {
      const int limit = request->limit() <= 0 ? 50 : std::min(request->limit(), 1000);
      ASSIGN_OR_RETURN(const std::vector<AuditRecord> records,
                       context_.store.ListAudit(request->before_sequence(), limit));
      for (const AuditRecord& record : records) *response->add_records() = ToProto(record);
      return absl::OkStatus();
    });
  }

 private:
  struct Leases {
    std::map<NodeId, bool> reachable;
    std::map<NodeId, absl::Time> heard;
  };
  Leases ReadLeases() const {
    return {context_.leases.Reachable(), context_.leases.LastHeartbeats()};
  }

  absl::StatusOr<v1::Node> Show(const NodeRecord& node, const Leases& leases) const {
    v1::Node out = ToProto(node);
    const auto lease = leases.reachable.find(node.id);
    const bool lost = node.lost || lease == leases.reachable.end();
    out.set_contact(lost            ? v1::Node::LOST
                    : lease->second ? v1::Node::REACHABLE
                                    : v1::Node::UNREACHABLE);
    const auto heard = leases.heard.find(node.id);
    if (heard != leases.heard.end() && heard->second != absl::InfinitePast()) {
      *out.mutable_last_heartbeat() = ToProto(heard->second);
    }
    ASSIGN_OR_RETURN(const std::vector<AttemptId> open, context_.store.OpenAttempts(node.id));
    for (const AttemptId& id : open) *out.add_attempts() = ToProto(id);
    ASSIGN_OR_RETURN(const int64_t busy, context_.store.CountReservations(node.id));
    out.set_devices_busy(static_cast<int32_t>(busy));
    return out;
  }

  absl::Status Schedule(const grpc::ServerContext& call, const std::string& node,
                        NodeScheduling scheduling, const std::string& message, v1::Node& out) {
    RETURN_IF_ERROR(CheckMessage(message));
    ASSIGN_OR_RETURN(const NodeRecord record,
                     context_.store.SetNodeScheduling(NodeId(node), scheduling, kDrainGrace,
                                                      call.peer(), message));
    SY_LOG(INFO) << "node scheduling changed node=" << node << " to=" << Name(scheduling)
                 << " by=" << call.peer();
    ASSIGN_OR_RETURN(out, Show(record, ReadLeases()));
    return absl::OkStatus();
  }

  const ServiceContext context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(const ServiceContext& context) {
  return std::make_unique<AdminServiceImpl>(context);
}

}  // namespace switchyard
