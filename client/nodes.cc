// nodes: what operators see and do.
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/edit_distance.h"
#include "client/commands.h"

namespace switchyard {
namespace {

std::string Attempts(const v1::Node& node) {
  std::vector<std::string> names;
  for (const v1::AttemptRef& ref : node.attempts()) {
    if (names.size() == 3) {
      names.push_back("...");
      break;
    }
    names.push_back(absl::StrCat(ShortName(ref.job()), "/", ref.attempt()));
  }
  return names.empty() ? "-" : absl::StrJoin(names, " ");
}

// The operator's words, and the coordinator's.
std::string Why(const v1::Node& node) {
  std::vector<std::string> parts;
  for (const std::string& part : {node.scheduling_message(), node.quarantine()}) {
    if (!part.empty()) parts.push_back(part);
  }
  return absl::StrJoin(parts, "; ");
}

int Show(CommandContext& context, const std::vector<v1::Node>& nodes) {
  std::vector<std::vector<std::string>> rows;
  for (const v1::Node& node : nodes) {
    std::map<std::string, int> kinds;
    for (const v1::Device& device : node.devices()) kinds[device.kind()] += 1;
    std::vector<std::string> devices;
    for (const auto& [kind, count] : kinds) devices.push_back(absl::StrCat(count, " ", kind));
    rows.push_back({node.name(), v1::Node::Contact_Name(node.contact()),
                    absl::StrCat(v1::Node::Scheduling_Name(node.scheduling()),
                                 node.quarantine().empty() ? "" : " QUARANTINED"),
                    absl::StrJoin(devices, ", "), absl::StrCat(node.devices_busy()), Attempts(node),
                    Why(node)});
  }
  context.terminal.out << Table(
      {"NODE", "CONTACT", "SCHEDULING", "DEVICES", "BUSY", "ATTEMPTS", "WHY"}, rows);
  return 0;
}

int List(CommandContext& context) {
  const absl::StatusOr<v1::ListNodesResponse> response =
      context.connection.CallAdmin(&v1::AdminService::Stub::ListNodes, v1::ListNodesRequest());
  if (!response.ok()) return context.Fail(response.status(), "list nodes");
  if (context.format == Format::kTable) {
    return Show(context, {response->nodes().begin(), response->nodes().end()});
  }
  context.terminal.out << Print(MessageToJson(*response), context.format);
  return 0;
}

int Audit(CommandContext& context) {
  const absl::StatusOr<v1::ListAuditRecordsResponse> response = context.connection.CallAdmin(
      &v1::AdminService::Stub::ListAuditRecords, v1::ListAuditRecordsRequest());
  if (!response.ok()) return context.Fail(response.status(), "list audit records");
  if (context.format != Format::kTable) {
    context.terminal.out << Print(MessageToJson(*response), context.format);
    return 0;
  }
  std::vector<std::vector<std::string>> rows;
  for (const v1::AuditRecord& record : response->records()) {
    rows.push_back(
        {absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixSeconds(record.time().seconds()),
                          absl::LocalTimeZone()),
         record.actor(), record.action(), record.target(), record.message()});
  }
  context.terminal.out << Table({"TIME", "BY", "ACTION", "NODE", "WHY"}, rows);
  return 0;
}

// One of the calls that change a node.
template <typename Request, typename Response>
int Change(CommandContext& context, const Request& request,
           grpc::Status (v1::AdminService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                          Response*)) {
  const absl::StatusOr<Response> response = context.connection.CallAdmin(method, request);
  if (!response.ok()) {
    return context.Fail(response.status(),
                        absl::StrCat(context.parsed.arguments[0], " node ", request.node()));
  }
  if (context.format == Format::kTable) return Show(context, {response->node()});
  context.terminal.out << Print(MessageToJson(response->node()), context.format);
  return 0;
}

template <typename Request>
Request WithMessage(const CommandContext& context) {
  Request request;
  request.set_node(context.parsed.arguments[1]);
  request.set_message(context.parsed.Get("message"));
  return request;
}

}  // namespace

int RunNodes(CommandContext& context) {
  using Stub = v1::AdminService::Stub;
  const std::vector<std::string> alone = {"list", "audit"};
  const std::vector<std::string> with_node = {"cordon", "drain", "resume", "confirm-dead"};
  const std::string& action = context.parsed.arguments[0];
  const bool names_node = context.parsed.arguments.size() > 1;
  const auto is_in = [&](const std::vector<std::string>& actions) {
    return std::find(actions.begin(), actions.end(), action) != actions.end();
  };
  if (!is_in(alone) && !is_in(with_node)) {
    std::vector<std::string> all = alone;
    all.insert(all.end(), with_node.begin(), with_node.end());
    const std::string near = Nearest(action, all);
    return context.FailUsage(
        absl::StrCat("nodes ", action, ": expected one of ", absl::StrJoin(all, ", "),
                     near.empty() ? "" : absl::StrCat(": did you mean ", near, "?")));
  }
  if (names_node != is_in(with_node)) {
    return context.FailUsage(
        absl::StrCat("nodes ", action, names_node ? " takes no node" : " needs the node's name"));
  }
  if (action == "list") return List(context);
  if (action == "audit") return Audit(context);
  if (action == "cordon") {
    return Change(context, WithMessage<v1::CordonNodeRequest>(context), &Stub::CordonNode);
  }
  if (action == "drain") {
    return Change(context, WithMessage<v1::DrainNodeRequest>(context), &Stub::DrainNode);
  }
  if (action == "confirm-dead") {
    return Change(context, WithMessage<v1::ConfirmNodeDeadRequest>(context),
                  &Stub::ConfirmNodeDead);
  }
  v1::ResumeNodeRequest request;
  request.set_node(context.parsed.arguments[1]);
  return Change(context, request, &Stub::ResumeNode);
}

}  // namespace switchyard
