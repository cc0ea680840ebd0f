// Writes about agents: registration, orders, reports, lost nodes.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "server/error.h"
#include "server/failure_policy.h"
#include "server/store/rows.h"
#include "server/store/transaction.h"

namespace switchyard {
namespace {

// After a failure the rest of the gang has nothing left to save.
constexpr absl::Duration kGraceAfterFailure = absl::Seconds(10);

// The first failure counts; what follows it is usually its consequence, and kept as such.
absl::Status SetAttemptFailure(Transaction& tx, const AttemptId& id, const FailureRecord& failure) {
  ASSIGN_OR_RETURN(const AttemptRecord attempt, LoadAttempt(tx.db, id));
  ASSIGN_OR_RETURN(Query query, tx.db.Prepare("UPDATE attempts SET failure = ? WHERE job = ? AND "
                                              "number = ?"));
  const std::string merged = ToRow(MergeFailures(attempt.failure, failure));
  return query.Bind(merged, id.job.value(), id.number).Run().status();
}

// What the processes there wrote last will never come.
absl::Status NoteLogTail(Transaction& tx, const PlacementRecord& p) {
  if (p.phase < PlacementPhase::kDispatched) return absl::OkStatus();
  ASSIGN_OR_RETURN(const JobRecord job, LoadJob(tx.db, p.attempt.job));
  return AddEvent(tx, job, "WARNING",
                  absl::StrCat("LOG_TAIL_INCOMPLETE: the last lines of attempt ", p.attempt.number,
                               " on node ", p.node.value(), " may be missing from the logs"));
}

absl::Status LosePlacement(Transaction& tx, PlacementRecord p, const FailureRecord& failure) {
  RETURN_IF_ERROR(NoteLogTail(tx, p));
  p.phase = PlacementPhase::kLost;
  RETURN_IF_ERROR(SetAttemptFailure(tx, p.attempt, failure));
  RETURN_IF_ERROR(UpdatePlacement(tx, p));
  return AdvanceGang(tx, p.attempt);
}

// Parts of attempts that the agent's earlier life held.
absl::Status RestartPlacements(Transaction& tx, const NodeRecord& before, const NodeRecord& now,
                               const std::vector<AttemptId>& live) {
  ASSIGN_OR_RETURN(const std::vector<AttemptId> open, OpenAttemptsOf(tx.db, now.id));
  for (const AttemptId& id : open) {
    if (std::find(live.begin(), live.end(), id) != live.end()) continue;
    ASSIGN_OR_RETURN(const AttemptRecord attempt, LoadAttempt(tx.db, id));
    ASSIGN_OR_RETURN(PlacementRecord p, LoadOpenPlacement(tx.db, now.id, id));
    if (attempt.state == AttemptState::kStopping) {
      RETURN_IF_ERROR(NoteLogTail(tx, p));
      p.phase = PlacementPhase::kFinished;
      p.stopped = true;
      RETURN_IF_ERROR(UpdatePlacement(tx, p));
      RETURN_IF_ERROR(AdvanceGang(tx, id));
    } else if (!attempt.started) {
      if (p.phase == PlacementPhase::kPrepared) p.phase = PlacementPhase::kDispatched;
      RETURN_IF_ERROR(UpdatePlacement(tx, p));
    } else {
      FailureRecord failure;
      const bool reboot = before.boot_id != now.boot_id;
      failure.reason = reboot ? FailureReason::kNodeReboot : FailureReason::kExitUnknown;
      failure.node = now.id.value();
      failure.message = absl::StrCat(reboot ? "node " : "the agent of node ", now.id.value(),
                                     " restarted; the ranks it ran are gone");
      RETURN_IF_ERROR(LosePlacement(tx, p, failure));
    }
  }
  return absl::OkStatus();
}

// Prep's report (docs/contracts.md, report.json) in one line for people, ": ..."; empty without
// one.
std::string DataSummary(const std::string& data_report) {
  const absl::StatusOr<Json> report = ParseJson(data_report, "data report");
  const Json* train = report.ok() ? JsonFind(*report, "train") : nullptr;
  if (train == nullptr) return "";
  const auto count = [&](absl::string_view key) {
    return JsonGetOr<int64_t>(*train, key, 0).value_or(0);
  };
  const int64_t tokens = count("tokens");
  std::string line =
      absl::StrFormat(": %d documents in %d rows, %d tokens, %.1f%% of them learnt",
                      count("documents"), count("packed_rows"), tokens,
                      tokens == 0 ? 0.0 : 100.0 * count("supervised_tokens") / tokens);
  for (const auto& [key, what] :
       {std::pair<absl::string_view, absl::string_view>{"malformed", "malformed rows left out"},
        {"dropped_overlong", "too long and left out"},
        {"truncated", "truncated"},
        {"dropped_unsupervised", "without a target and left out"}}) {
    if (const int64_t n = count(key); n > 0) absl::StrAppendFormat(&line, ", %d %s", n, what);
  }
  return line;
}

// What one report does to its attempt.
struct ApplyReport {
  Transaction& tx;
  const JobRecord& job;
  PlacementRecord placement;

  absl::Status operator()(const LogReport&) {
    tx.changes.jobs.insert(job.id);
    return absl::OkStatus();
  }
  absl::Status operator()(const PreparedReport& report) {
    if (placement.phase < PlacementPhase::kPrepared) {
      placement.phase = PlacementPhase::kPrepared;
    }
    placement.port = report.port;
    RETURN_IF_ERROR(UpdatePlacement(tx, placement));
    return AddEvent(
        tx, job, "PHASE",
        absl::StrCat("prepared on node ", placement.node.value(), DataSummary(report.data_report)));
  }
  absl::Status operator()(const RunningReport&) {
    if (placement.phase < PlacementPhase::kRunning) placement.phase = PlacementPhase::kRunning;
    return UpdatePlacement(tx, placement);
  }
  absl::Status operator()(const StepReport& report) {
    {
      ASSIGN_OR_RETURN(
          Query query,
          tx.db.Prepare("INSERT INTO step_metrics (job, attempt, step, after_event, raw) VALUES "
                        "(?, ?, ?, (SELECT coalesce(max(seq), 0) FROM events), ?) "
                        "ON CONFLICT DO NOTHING"));
      query.Bind(job.id.value(), placement.attempt.number, report.step).Blob(4, report.raw);
      RETURN_IF_ERROR(query.Run().status());
    }
    tx.changes.jobs.insert(job.id);
    tx.changes.steps.push_back(
        {placement.attempt, report.step, report.step_seconds, report.slow_rank, report.slow_ratio});
    if (!report.validation_loss) return absl::OkStatus();
    ASSIGN_OR_RETURN(Query query,
                     tx.db.Prepare("UPDATE jobs SET validation_loss = ? WHERE name = ?"));
    return query.Bind(*report.validation_loss, job.id.value()).Run().status();
  }
  absl::Status operator()(const FinishedReport& report) {
    placement.phase = PlacementPhase::kFinished;
    placement.succeeded = report.succeeded;
    placement.stopped = report.stopped;
    if (report.failure && !report.succeeded) {
      RETURN_IF_ERROR(SetAttemptFailure(tx, placement.attempt, *report.failure));
    }
    return UpdatePlacement(tx, placement);
  }
  absl::Status operator()(const EventReport& report) {
    const bool known =
        report.kind == "PHASE" || report.kind == "WARNING" || report.kind == "VALIDATION";
    return AddEvent(tx, job, known ? report.kind : "WARNING", report.message);
  }
  absl::Status operator()(const RankFailedReport& report) {
    RETURN_IF_ERROR(SetAttemptFailure(tx, placement.attempt, report.failure));
    return UpdatePlacement(tx, placement);
  }
};

}  // namespace

absl::StatusOr<std::vector<AttemptId>> OpenAttemptsOf(Database& db, const NodeId& node) {
  std::vector<AttemptId> out;
  ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT p.job, p.attempt FROM placements p JOIN jobs j "
                                           "ON j.name = p.job WHERE p.node = ? AND p.phase < 5 "
                                           "ORDER BY j.seq"));
  query.Bind(node.value());
  while (true) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return out;
    out.push_back({JobId(query.TextAt(0)), static_cast<int32_t>(query.IntAt(1))});
  }
}

absl::Status CheckIncarnation(Database& db, const NodeId& node, const Incarnation& incarnation) {
  ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT incarnation, lost FROM nodes WHERE name = ?"));
  ASSIGN_OR_RETURN(const bool found, query.Bind(node.value()).Step());
  if (found && query.TextAt(0) == incarnation.value() && query.IntAt(1) == 0) {
    return absl::OkStatus();
  }
  return MakeError(
      absl::StatusCode::kAborted, "STALE_INCARNATION",
      absl::StrCat("node ", node.value(), ": incarnation ", incarnation.value(),
                   found ? " no longer holds it; register again" : " is not registered"),
      {{"node", node.value()}, {"incarnation", incarnation.value()}});
}

absl::StatusOr<PlacementRecord> LoadOpenPlacement(Database& db, const NodeId& node,
                                                  const AttemptId& id) {
  ASSIGN_OR_RETURN(Query query, db.Prepare(absl::StrCat("SELECT ", kPlacementColumns,
                                                        " FROM placements WHERE job = ? AND "
                                                        "attempt = ? AND node = ? AND phase < 5")));
  ASSIGN_OR_RETURN(const bool found, query.Bind(id.job.value(), id.number, node.value()).Step());
  if (found) return ReadPlacement(query);
  return MakeError(
      absl::StatusCode::kAborted, "STALE_ATTEMPT",
      absl::StrCat("attempt ", id.number, " of job ", id.job.value(), " is not open on node ",
                   node.value()),
      {{"job", id.job.value()}, {"attempt", absl::StrCat(id.number)}, {"node", node.value()}});
}

absl::StatusOr<RegisterResult> Store::RegisterNode(const NodeRecord& node,
                                                   const std::vector<AttemptId>& live) {
  RegisterResult result;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    absl::optional<NodeRecord> before;
    {
      ASSIGN_OR_RETURN(Query query, tx.db.Prepare(absl::StrCat("SELECT ", kNodeColumns,
                                                               " FROM nodes WHERE name = ?")));
      ASSIGN_OR_RETURN(const bool found, query.Bind(node.id.value()).Step());
      if (found) before = ReadNode(query);
    }
    const bool same_life = before && before->incarnation == node.incarnation;
    result.acknowledged_report = same_life ? before->acknowledged_report : 0;
    {
      // What operators said about the node stays.
      const NodeScheduling scheduling = before ? before->scheduling : NodeScheduling::kActive;
      // The answer with the shorter lease may never arrive: see SettleLease.
      absl::Duration ttl = node.lease_ttl;
      if (before && !before->lost && before->boot_id == node.boot_id) {
        ttl = std::max(ttl, before->lease_ttl);
      }
      ASSIGN_OR_RETURN(Query query, tx.db.Prepare("INSERT OR REPLACE INTO nodes VALUES "
                                                  "(?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?)"));
      query.Bind(node.id.value(), node.incarnation.value(), node.boot_id, node.address,
                 node.version, ToRow(node.devices), result.acknowledged_report, node.state_folder,
                 scheduling, before ? before->scheduling_message : std::string(), node.agent_id,
                 node.boots, absl::ToInt64Milliseconds(ttl));
      RETURN_IF_ERROR(query.Run().status());
    }
    if (before && !same_life) RETURN_IF_ERROR(RestartPlacements(tx, *before, node, live));
    for (const AttemptId& id : live) {
      if (absl::IsAborted(LoadOpenPlacement(tx.db, node.id, id).status())) {
        result.stale.push_back(id);
      }
    }
    tx.changes.nodes.insert(node.id);
    tx.changes.scheduling_nodes.insert(node.id);
    tx.changes.node_signals.push_back(
        {node.id, before && !same_life ? NodeSignalKind::kRestarted : NodeSignalKind::kRegistered});
    tx.changes.schedule = true;
    return absl::OkStatus();
  }));
  return result;
}

absl::Status Store::SettleLease(const NodeId& node, const Incarnation& incarnation,
                                absl::Duration ttl) {
  bool longer = false;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(const NodeRecord stored, LoadNode(db, node));
    longer = stored.incarnation == incarnation && stored.lease_ttl > ttl;
    return absl::OkStatus();
  }));
  if (!longer) return absl::OkStatus();
  return Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(Query query, tx.db.Prepare("UPDATE nodes SET lease_ttl_ms = ? WHERE name = ? "
                                                "AND incarnation = ? AND lease_ttl_ms > ?"));
    const int64_t milliseconds = absl::ToInt64Milliseconds(ttl);
    query.Bind(milliseconds, node.value(), incarnation.value(), milliseconds);
    return query.Run().status();
  });
}

absl::StatusOr<std::vector<OrderRecord>> Store::TakeOrders(const NodeId& node,
                                                           const Incarnation& incarnation) {
  std::vector<OrderRecord> orders;
  bool unsent = false;
  const auto collect = [&](Database& db) -> absl::Status {
    orders.clear();
    unsent = false;
    RETURN_IF_ERROR(CheckIncarnation(db, node, incarnation));
    ASSIGN_OR_RETURN(const std::vector<AttemptId> open, OpenAttemptsOf(db, node));
    for (const AttemptId& id : open) {
      ASSIGN_OR_RETURN(const JobRecord job, LoadJob(db, id.job));
      ASSIGN_OR_RETURN(const AttemptRecord attempt, LoadAttempt(db, id));
      ASSIGN_OR_RETURN(const auto placements, LoadPlacements(db, id));
      const auto mine = std::find_if(placements.begin(), placements.end(),
                                     [&](const PlacementRecord& p) { return p.node == node; });
      if (mine == placements.end()) continue;
      if (attempt.state == AttemptState::kStopping) {
        const bool by_order = job.state == JobState::kStopping;
        orders.push_back(
            {id, StopOrder{by_order ? job.stop_grace : kGraceAfterFailure, job.message, by_order}});
      } else if (mine->phase <= PlacementPhase::kDispatched) {
        AssignOrder assign;
        assign.job_uid = job.uid;
        assign.spec = job.spec;
        assign.node_rank = mine->node_rank;
        assign.num_nodes = static_cast<int32_t>(placements.size());
        assign.first_rank = mine->first_rank;
        assign.devices = mine->devices;
        assign.world_size = job.needs.num_ranks;
        assign.resume_from = attempt.resume_from;
        orders.push_back({id, std::move(assign)});
        unsent = unsent || mine->phase == PlacementPhase::kReserved;
      } else if (attempt.started && mine->phase == PlacementPhase::kPrepared) {
        ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT address FROM nodes WHERE name = ?"));
        ASSIGN_OR_RETURN(const bool found, query.Bind(placements[0].node.value()).Step());
        orders.push_back(
            {id, StartOrder{found ? query.TextAt(0) : std::string(), placements[0].port}});
      }
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(Read(collect));
  if (!unsent) return orders;
  // Written down before it is sent: from now on the node may have started something.
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    RETURN_IF_ERROR(collect(tx.db));
    for (const OrderRecord& order : orders) {
      if (!absl::holds_alternative<AssignOrder>(order.what)) continue;
      ASSIGN_OR_RETURN(PlacementRecord p, LoadOpenPlacement(tx.db, node, order.attempt));
      if (p.phase != PlacementPhase::kReserved) continue;
      p.phase = PlacementPhase::kDispatched;
      RETURN_IF_ERROR(UpdatePlacement(tx, p));
      RETURN_IF_ERROR(AdvanceGang(tx, p.attempt));
    }
    return absl::OkStatus();
  }));
  return orders;
}

absl::StatusOr<ReportResult> Store::RecordReports(const NodeId& node,
                                                  const Incarnation& incarnation,
                                                  const std::vector<ReportRecord>& reports) {
  ReportResult result;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    RETURN_IF_ERROR(CheckIncarnation(tx.db, node, incarnation));
    {
      ASSIGN_OR_RETURN(Query query,
                       tx.db.Prepare("SELECT acknowledged_report FROM nodes WHERE name = ?"));
      RETURN_IF_ERROR(query.Bind(node.value()).Step().status());
      result.acknowledged = query.IntAt(0);
    }
    for (const ReportRecord& report : reports) {
      if (report.number <= result.acknowledged) continue;
      if (report.number != result.acknowledged + 1) break;
      result.acknowledged = report.number;
      absl::StatusOr<PlacementRecord> placement = LoadOpenPlacement(tx.db, node, report.attempt);
      if (absl::IsAborted(placement.status())) {
        if (std::find(result.stale.begin(), result.stale.end(), report.attempt) ==
            result.stale.end()) {
          result.stale.push_back(report.attempt);
        }
        tx.changes.stale_reports += 1;
        continue;
      }
      RETURN_IF_ERROR(placement.status());
      ASSIGN_OR_RETURN(const JobRecord job, LoadJob(tx.db, report.attempt.job));
      RETURN_IF_ERROR(absl::visit(ApplyReport{tx, job, *placement}, report.what));
      RETURN_IF_ERROR(AdvanceGang(tx, report.attempt));
    }
    ASSIGN_OR_RETURN(Query query,
                     tx.db.Prepare("UPDATE nodes SET acknowledged_report = ? WHERE name = ?"));
    return query.Bind(result.acknowledged, node.value()).Run().status();
  }));
  return result;
}

absl::Status LoseNode(Transaction& tx, const NodeId& node, const std::string& why) {
  {
    ASSIGN_OR_RETURN(Query query, tx.db.Prepare("UPDATE nodes SET lost = 1 WHERE name = ?"));
    RETURN_IF_ERROR(query.Bind(node.value()).Run().status());
  }
  ASSIGN_OR_RETURN(const std::vector<AttemptId> open, OpenAttemptsOf(tx.db, node));
  for (const AttemptId& id : open) {
    ASSIGN_OR_RETURN(const PlacementRecord p, LoadOpenPlacement(tx.db, node, id));
    FailureRecord failure;
    failure.reason = FailureReason::kNodeLost;
    failure.node = node.value();
    failure.message = why;
    RETURN_IF_ERROR(LosePlacement(tx, p, failure));
  }
  tx.changes.nodes.insert(node);
  tx.changes.scheduling_nodes.insert(node);
  tx.changes.schedule = true;
  return absl::OkStatus();
}

absl::Status Store::NodeLost(const NodeId& node, const Incarnation& incarnation) {
  return Write([&](Transaction& tx) -> absl::Status {
    const absl::Status holder = CheckIncarnation(tx.db, node, incarnation);
    if (absl::IsAborted(holder)) return absl::OkStatus();  // registered anew, or lost before
    RETURN_IF_ERROR(holder);
    tx.changes.node_signals.push_back({node, NodeSignalKind::kLost});
    return LoseNode(
        tx, node, absl::StrCat("node ", node.value(), " was not heard of until its lease expired"));
  });
}

}  // namespace switchyard
