// What operators do with nodes, and the audit log of it.
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/error.h"
#include "server/store/rows.h"
#include "server/store/transaction.h"

namespace switchyard {
namespace {

constexpr char kCoordinatorActor[] = "coordinator";

}  // namespace

absl::StatusOr<NodeRecord> LoadNode(Database& db, const NodeId& node) {
  ASSIGN_OR_RETURN(Query query,
                   db.Prepare(absl::StrCat("SELECT ", kNodeColumns, " FROM nodes WHERE name = ?")));
  ASSIGN_OR_RETURN(const bool found, query.Bind(node.value()).Step());
  if (found) return ReadNode(query);
  return MakeError(absl::StatusCode::kNotFound, "NODE_NOT_FOUND",
                   absl::StrCat("node ", node.value(), " has never registered"),
                   {{"node", node.value()}});
}

absl::Status AddAudit(Transaction& tx, const std::string& actor, absl::string_view action,
                      const std::string& target, const std::string& message) {
  ASSIGN_OR_RETURN(Query query, tx.db.Prepare("INSERT INTO audit (time, actor, action, target, "
                                              "message) VALUES (?, ?, ?, ?, ?)"));
  return query.Bind(ToRow(tx.now), actor, action, target, message).Run().status();
}

absl::StatusOr<NodeRecord> Store::GetNode(const NodeId& node) {
  NodeRecord out;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(out, LoadNode(db, node));
    return absl::OkStatus();
  }));
  return out;
}

absl::StatusOr<std::vector<AttemptId>> Store::OpenAttempts(const NodeId& node) {
  std::vector<AttemptId> out;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(out, OpenAttemptsOf(db, node));
    return absl::OkStatus();
  }));
  return out;
}

absl::StatusOr<int64_t> Store::CountReservations(const NodeId& node) {
  int64_t count = 0;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT count(*) FROM reservations WHERE node = ?"));
    RETURN_IF_ERROR(query.Bind(node.value()).Step().status());
    count = query.IntAt(0);
    return absl::OkStatus();
  }));
  return count;
}

absl::StatusOr<NodeRecord> Store::SetNodeScheduling(const NodeId& node, NodeScheduling scheduling,
                                                    absl::Duration grace, const std::string& actor,
                                                    const std::string& message) {
  NodeRecord stored;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    RETURN_IF_ERROR(LoadNode(tx.db, node).status());
    {
      ASSIGN_OR_RETURN(Query query, tx.db.Prepare("UPDATE nodes SET scheduling = ?, "
                                                  "scheduling_message = ? WHERE name = ?"));
      RETURN_IF_ERROR(query.Bind(scheduling, message, node.value()).Run().status());
    }
    RETURN_IF_ERROR(AddAudit(tx, actor,
                             scheduling == NodeScheduling::kActive     ? "ResumeNode"
                             : scheduling == NodeScheduling::kCordoned ? "CordonNode"
                                                                       : "DrainNode",
                             node.value(), message));
    if (scheduling == NodeScheduling::kActive) {
      ASSIGN_OR_RETURN(Query query, tx.db.Prepare("DELETE FROM quarantines WHERE node = ?"));
      RETURN_IF_ERROR(query.Bind(node.value()).Run().status());
      tx.changes.node_signals.push_back({node, NodeSignalKind::kResumed});
    }
    tx.changes.schedule = true;
    tx.changes.scheduling_nodes.insert(node);
    if (scheduling == NodeScheduling::kDraining) {
      ASSIGN_OR_RETURN(const std::vector<AttemptId> open, OpenAttemptsOf(tx.db, node));
      for (const AttemptId& id : open) {
        ASSIGN_OR_RETURN(JobRecord job, LoadJob(tx.db, id.job));
        if (job.state != JobState::kStarting && job.state != JobState::kRunning) continue;
        RETURN_IF_ERROR(StopGang(tx, job, StopTarget::kQueued, StopReason::kDrain, grace,
                                 absl::StrCat("node ", node.value(), " is drained",
                                              message.empty() ? "" : ": ", message)));
      }
    }
    ASSIGN_OR_RETURN(stored, LoadNode(tx.db, node));
    return absl::OkStatus();
  }));
  return stored;
}

absl::Status Store::SetQuarantine(const NodeId& node, const QuarantineRecord& quarantine) {
  return Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(const NodeRecord before, LoadNode(tx.db, node));
    if (before.quarantine == quarantine) return absl::OkStatus();
    {
      ASSIGN_OR_RETURN(Query query,
                       tx.db.Prepare("INSERT OR REPLACE INTO quarantines VALUES (?, ?, ?)"));
      query.Bind(node.value(), quarantine.level, quarantine.message);
      RETURN_IF_ERROR(query.Run().status());
    }
    tx.changes.schedule = true;
    tx.changes.scheduling_nodes.insert(node);
    if (quarantine.message.empty()) {
      return AddAudit(tx, kCoordinatorActor, "ReleaseNode", node.value(), "");
    }
    RETURN_IF_ERROR(
        AddAudit(tx, kCoordinatorActor, "QuarantineNode", node.value(), quarantine.message));
    // What runs there goes on; its users should know on what ground it stands.
    ASSIGN_OR_RETURN(const std::vector<AttemptId> open, OpenAttemptsOf(tx.db, node));
    for (const AttemptId& id : open) {
      ASSIGN_OR_RETURN(const JobRecord job, LoadJob(tx.db, id.job));
      RETURN_IF_ERROR(
          AddEvent(tx, job, "WARNING",
                   absl::StrCat("node ", node.value(), " is quarantined: ", quarantine.message)));
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<NodeRecord> Store::ConfirmNodeDead(const NodeId& node, const std::string& actor,
                                                  const std::string& message) {
  NodeRecord stored;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(const NodeRecord before, LoadNode(tx.db, node));
    RETURN_IF_ERROR(AddAudit(tx, actor, "ConfirmNodeDead", node.value(), message));
    if (!before.lost) {
      RETURN_IF_ERROR(LoseNode(
          tx, node, absl::StrCat("node ", node.value(), " was confirmed dead by an operator")));
    }
    ASSIGN_OR_RETURN(stored, LoadNode(tx.db, node));
    return absl::OkStatus();
  }));
  return stored;
}

absl::StatusOr<std::vector<AuditRecord>> Store::ListAudit(int64_t before_seq, int limit) {
  std::vector<AuditRecord> out;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query,
                     db.Prepare("SELECT seq, time, actor, action, target, message FROM audit WHERE "
                                "(? = 0 OR seq < ?) ORDER BY seq DESC LIMIT ?"));
    query.Bind(before_seq, before_seq, limit);
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::OkStatus();
      out.push_back({query.IntAt(0), TimeFromRow(query.IntAt(1)), query.TextAt(2), query.TextAt(3),
                     query.TextAt(4), query.TextAt(5)});
    }
  }));
  return out;
}

}  // namespace switchyard
