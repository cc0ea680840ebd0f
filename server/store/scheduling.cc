// What the scheduler reads and writes besides placements: its view of jobs, run times, conditions.
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/status_macros.h"
#include "server/store/rows.h"
#include "server/store/transaction.h"

namespace switchyard {
namespace {

absl::Status ReadParts(Database& db, JobView& job) {
  if (job.state != JobState::kStarting && job.state != JobState::kRunning &&
      job.state != JobState::kStopping) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const auto placements, LoadPlacements(db, {job.id, job.attempt}));
  for (const PlacementRecord& p : placements) {
    if (p.phase < PlacementPhase::kFinished) job.parts.push_back({p.node, p.devices});
  }
  return absl::OkStatus();
}

bool IsLive(JobState state) {
  return state == JobState::kStarting || state == JobState::kRunning ||
         state == JobState::kStopping;
}

absl::Status SetCondition(Transaction& tx, const JobRecord& job, ConditionType type,
                          const std::string& message) {
  {
    ASSIGN_OR_RETURN(Query query, tx.db.Prepare("UPDATE conditions SET message = ? WHERE job = ? "
                                                "AND type = ?"));
    ASSIGN_OR_RETURN(const int64_t known, query.Bind(message, job.id.value(), type).Run());
    if (known > 0) return absl::OkStatus();
  }
  {
    ASSIGN_OR_RETURN(Query query, tx.db.Prepare("INSERT INTO conditions VALUES (?, ?, ?, ?)"));
    RETURN_IF_ERROR(query.Bind(job.id.value(), type, message, ToRow(tx.now)).Run().status());
  }
  return AddEvent(tx, job, "CONDITION", absl::StrCat(Name(type), ": ", message));
}

absl::Status ClearCondition(Transaction& tx, const JobRecord& job, ConditionType type) {
  {
    ASSIGN_OR_RETURN(Query query,
                     tx.db.Prepare("DELETE FROM conditions WHERE job = ? AND type = ?"));
    ASSIGN_OR_RETURN(const int64_t known, query.Bind(job.id.value(), type).Run());
    if (known == 0) return absl::OkStatus();
  }
  return AddEvent(tx, job, "CONDITION", absl::StrCat(Name(type), " is over"));
}

}  // namespace

absl::Status ClearConditions(Transaction& tx, const JobRecord& job) {
  for (const ConditionType type : AllConditionTypes()) {
    RETURN_IF_ERROR(ClearCondition(tx, job, type));
  }
  return absl::OkStatus();
}

absl::Status Store::SetConditions(const std::vector<ConditionChange>& changes) {
  if (changes.empty()) return absl::OkStatus();
  return Write([&](Transaction& tx) -> absl::Status {
    for (const ConditionChange& change : changes) {
      ASSIGN_OR_RETURN(const JobRecord job, LoadJob(tx.db, change.job));
      if (!IsLive(job.state)) continue;  // ended since; its conditions are cleared
      RETURN_IF_ERROR(change.message ? SetCondition(tx, job, change.type, *change.message)
                                     : ClearCondition(tx, job, change.type));
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<std::vector<ConditionRecord>> Store::ListConditions(const JobId& id) {
  std::vector<ConditionRecord> out;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT type, message, since FROM conditions WHERE "
                                             "job = ? ORDER BY type"));
    query.Bind(id.value());
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::OkStatus();
      out.push_back({static_cast<ConditionType>(query.IntAt(0)), query.TextAt(1),
                     TimeFromRow(query.IntAt(2))});
    }
  }));
  return out;
}

absl::StatusOr<std::vector<JobView>> Store::ViewJobs() {
  std::vector<JobView> out;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    {
      ASSIGN_OR_RETURN(Query query, db.Prepare(absl::StrCat("SELECT ", kJobViewColumns,
                                                            " FROM jobs WHERE state IN (2, 3, 4, "
                                                            "5) ORDER BY name")));
      while (true) {
        ASSIGN_OR_RETURN(const bool row, query.Step());
        if (!row) break;
        out.push_back(ReadJobView(query));
      }
    }
    for (JobView& job : out) RETURN_IF_ERROR(ReadParts(db, job));
    return absl::OkStatus();
  }));
  return out;
}

absl::StatusOr<std::vector<JobView>> Store::ViewJobs(const std::set<JobId>& ids) {
  std::vector<JobView> out;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    for (const JobId& id : ids) {
      {
        ASSIGN_OR_RETURN(Query query, db.Prepare(absl::StrCat("SELECT ", kJobViewColumns,
                                                              " FROM jobs WHERE name = ?")));
        ASSIGN_OR_RETURN(const bool found, query.Bind(id.value()).Step());
        if (!found) continue;
        out.push_back(ReadJobView(query));
      }
      RETURN_IF_ERROR(ReadParts(db, out.back()));
    }
    return absl::OkStatus();
  }));
  return out;
}

absl::Status Store::AddRunTime(const std::map<AttemptId, absl::Duration>& held) {
  if (held.empty()) return absl::OkStatus();
  return Write([&](Transaction& tx) -> absl::Status {
    for (const auto& [attempt, time] : held) {
      {
        ASSIGN_OR_RETURN(Query query, tx.db.Prepare("UPDATE jobs SET run_time_ms = run_time_ms + ? "
                                                    "WHERE name = ?"));
        query.Bind(absl::ToInt64Milliseconds(time), attempt.job.value());
        RETURN_IF_ERROR(query.Run().status());
      }
      tx.changes.scheduling_jobs.insert(attempt.job);
      ASSIGN_OR_RETURN(JobRecord job, LoadJob(tx.db, attempt.job));
      const absl::Duration limit = job.needs.max_run_time;
      const bool runs = job.state == JobState::kStarting || job.state == JobState::kRunning;
      if (limit == absl::ZeroDuration() || job.run_time < limit || !runs) continue;
      RETURN_IF_ERROR(
          StopGang(tx, job, StopTarget::kFailed, StopReason::kDeadline, job.stop_grace,
                   absl::StrCat("it has held devices for ", absl::FormatDuration(job.run_time),
                                ", its max_run_time is ", absl::FormatDuration(limit))));
    }
    return absl::OkStatus();
  });
}

}  // namespace switchyard
