// Opening, and reads of jobs and their histories. scheduling.cc and nodes.cc have their own.
#include "server/store/store.h"

#include <unistd.h>

#include <iterator>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/error.h"
#include "server/store/database.h"
#include "server/store/migrations.h"
#include "server/store/replacement.h"
#include "server/store/rows.h"
#include "server/store/state_folder.h"
#include "server/store/transaction.h"
#include "server/store/writer.h"

namespace switchyard {
namespace {

std::string NewUuid() {
  absl::BitGen gen;
  return absl::StrFormat("%016x%016x", absl::Uniform<uint64_t>(gen), absl::Uniform<uint64_t>(gen));
}

std::string StateList(const std::vector<JobState>& states) {
  return absl::StrJoin(states, ",", [](std::string* out, JobState state) {
    absl::StrAppend(out, static_cast<int>(state));
  });
}

}  // namespace

void ChangeSet::Merge(ChangeSet&& other) {
  jobs.merge(other.jobs);
  nodes.merge(other.nodes);
  schedule = schedule || other.schedule;
  scheduling_jobs.merge(other.scheduling_jobs);
  scheduling_nodes.merge(other.scheduling_nodes);
  steps.insert(steps.end(), other.steps.begin(), other.steps.end());
  checkpoints.insert(checkpoints.end(), other.checkpoints.begin(), other.checkpoints.end());
  job_changes.insert(job_changes.end(), std::make_move_iterator(other.job_changes.begin()),
                     std::make_move_iterator(other.job_changes.end()));
  attempt_changes.insert(attempt_changes.end(),
                         std::make_move_iterator(other.attempt_changes.begin()),
                         std::make_move_iterator(other.attempt_changes.end()));
  node_signals.insert(node_signals.end(), std::make_move_iterator(other.node_signals.begin()),
                      std::make_move_iterator(other.node_signals.end()));
  stale_reports += other.stale_reports;
}

Store::Store(StoreOptions options, Clock& clock) : options_(std::move(options)), clock_(clock) {}
Store::~Store() = default;

bool Store::SqliteHasWalResetBug() { return switchyard::SqliteHasWalResetBug(); }

absl::StatusOr<std::unique_ptr<Store>> Store::Open(StoreOptions options, Clock& clock) {
  std::unique_ptr<Store> store(new Store(std::move(options), clock));
  const std::string path = DatabasePath(store->options_.folder);
  RETURN_IF_ERROR(MakeFolders(store->options_.folder));
  RETURN_IF_ERROR(CheckLocalFileSystem(store->options_.folder));
  ASSIGN_OR_RETURN(store->lock_, LockStateFolder(store->options_.folder));
  RETURN_IF_ERROR(FinishReplacement(store->options_.folder));
  RETURN_IF_ERROR(CheckNoneIsMissing(store->options_.folder));
  std::unique_ptr<Database> db;
  const auto open = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(db, Database::Open(path, OpenMode::kReadWrite));
    return db->QuickCheck();
  };
  if (const absl::Status opened = open(); absl::IsDataLoss(opened)) {
    return absl::DataLossError(
        absl::StrCat("open ", path, ": ", opened.message(), ". Nothing was changed. Copy ",
                     store->options_.folder, " away first; then `switchyardd restore --state-dir ",
                     store->options_.folder,
                     " --from BACKUP`, or without a backup `switchyardd recover --state-dir ",
                     store->options_.folder, "`"));
  } else if (!opened.ok()) {
    return opened;
  }
  RETURN_IF_ERROR(Migrate(*db, NewUuid()));
  RETURN_IF_ERROR(db->Execute(
      "UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'coordinator_epoch'"));
  ASSIGN_OR_RETURN(store->epoch_, db->QueryInt("SELECT CAST(value AS INTEGER) FROM meta WHERE key "
                                               "= 'coordinator_epoch'"));
  ASSIGN_OR_RETURN(store->uuid_, db->QueryText("SELECT value FROM meta WHERE key = 'db_uuid'"));
  // A restored database continues none of the positions that were handed out before.
  ASSIGN_OR_RETURN(const int64_t restores,
                   db->QueryInt("SELECT coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE "
                                "key = 'restore_generation'), 0)"));
  if (restores > 0) absl::StrAppend(&store->uuid_, "-", restores);
  ASSIGN_OR_RETURN(store->held_after_restore_,
                   db->QueryInt("SELECT EXISTS (SELECT 1 FROM meta WHERE key = "
                                "'hold_after_restore')"));
  ASSIGN_OR_RETURN(store->artifact_root_id_,
                   db->QueryText("SELECT coalesce((SELECT value FROM meta WHERE key = "
                                 "'artifact_root_id'), '')"));
  RETURN_IF_ERROR(SyncFolder(store->options_.folder));
  {
    absl::MutexLock lock(&store->readers_mu_);
    for (int i = 0; i < store->options_.num_readers; ++i) {
      ASSIGN_OR_RETURN(auto reader, Database::Open(path, OpenMode::kReadOnly));
      store->idle_readers_.push_back(std::move(reader));
    }
  }
  store->writer_ = std::make_unique<Writer>(std::move(db), store->options_, clock);
  return store;
}

absl::Status Store::EndRestoreHold() {
  return Write([](Transaction& tx) {
    return tx.db.Execute("DELETE FROM meta WHERE key = 'hold_after_restore'");
  });
}

absl::Status Store::SetArtifactRootId(const std::string& id) {
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(Query query,
                     tx.db.Prepare("INSERT OR REPLACE INTO meta VALUES ('artifact_root_id', ?)"));
    return query.Bind(id).Run().status();
  }));
  artifact_root_id_ = id;
  return absl::OkStatus();
}

void Store::Subscribe(std::function<void(const ChangeSet&)> listener) {
  writer_->Subscribe(std::move(listener));
}

absl::Status Store::Write(std::function<absl::Status(Transaction&)> body) {
  return writer_->Write(std::move(body));
}

namespace {

absl::Status AppendEvents(Database& db, const JobId& id, int64_t after_job_seq, int limit,
                          std::vector<EventRecord>& events) {
  ASSIGN_OR_RETURN(Query query,
                   db.Prepare("SELECT seq, job_seq, time, kind, message, state, attempt FROM "
                              "events WHERE job = ? AND job_seq > ? ORDER BY job_seq LIMIT ?"));
  query.Bind(id.value(), after_job_seq, limit);
  while (true) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return absl::OkStatus();
    events.push_back({query.IntAt(0), query.IntAt(1), TimeFromRow(query.IntAt(2)), query.TextAt(3),
                      query.TextAt(4), static_cast<JobState>(query.IntAt(5)),
                      static_cast<int32_t>(query.IntAt(6))});
  }
}

absl::Status AppendSteps(Database& db, const JobId& id, const HistoryPosition& after, int limit,
                         std::vector<StepRecord>& steps) {
  ASSIGN_OR_RETURN(Query query,
                   db.Prepare("SELECT id, after_event, attempt, step, raw FROM step_metrics "
                              "WHERE job = ? AND id > ? AND (id > ? OR step > ?) "
                              "ORDER BY id LIMIT ?"));
  query.Bind(id.value(), after.step_id, after.replay_until_id, after.replay_after_step, limit);
  while (true) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return absl::OkStatus();
    steps.push_back({query.IntAt(0), query.IntAt(1), static_cast<int32_t>(query.IntAt(2)),
                     query.IntAt(3), query.TextAt(4)});
  }
}

}  // namespace

absl::Status Store::Read(const std::function<absl::Status(Database&)>& body) {
  std::unique_ptr<Database> reader;
  {
    absl::MutexLock lock(&readers_mu_);
    readers_mu_.Await(absl::Condition(
        +[](std::vector<std::unique_ptr<Database>>* idle) { return !idle->empty(); },
        &idle_readers_));
    reader = std::move(idle_readers_.back());
    idle_readers_.pop_back();
  }
  const absl::Status status = body(*reader);
  // What cannot be read cannot be trusted to be written either.
  if (absl::IsDataLoss(status)) writer_->StopForGood(status);
  absl::MutexLock lock(&readers_mu_);
  idle_readers_.push_back(std::move(reader));
  return status;
}

absl::StatusOr<JobRecord> LoadJob(Database& db, const JobId& id) {
  ASSIGN_OR_RETURN(Query query,
                   db.Prepare(absl::StrCat("SELECT ", kJobColumns, " FROM jobs WHERE name = ?")));
  ASSIGN_OR_RETURN(const bool found, query.Bind(id.value()).Step());
  if (!found) {
    return MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND",
                     absl::StrCat("job ", id.value(), " does not exist"), {{"job", id.value()}});
  }
  return ReadJob(query);
}

absl::StatusOr<AttemptRecord> LoadAttempt(Database& db, const AttemptId& id) {
  ASSIGN_OR_RETURN(Query query, db.Prepare(absl::StrCat("SELECT ", kAttemptColumns,
                                                        " FROM attempts WHERE job = ? AND "
                                                        "number = ?")));
  ASSIGN_OR_RETURN(const bool found, query.Bind(id.job.value(), id.number).Step());
  if (!found) {
    return absl::NotFoundError(
        absl::StrCat("attempt ", id.number, " of job ", id.job.value(), " does not exist"));
  }
  return ReadAttempt(query);
}

absl::StatusOr<std::vector<PlacementRecord>> LoadPlacements(Database& db, const AttemptId& id) {
  ASSIGN_OR_RETURN(Query query, db.Prepare(absl::StrCat("SELECT ", kPlacementColumns,
                                                        " FROM placements WHERE job = ? AND "
                                                        "attempt = ? ORDER BY node_rank")));
  query.Bind(id.job.value(), id.number);
  std::vector<PlacementRecord> out;
  while (true) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return out;
    out.push_back(ReadPlacement(query));
  }
}

absl::StatusOr<JobRecord> Store::GetJob(const JobId& id) {
  absl::StatusOr<JobRecord> job;
  RETURN_IF_ERROR(Read([&](Database& db) {
    job = LoadJob(db, id);
    return job.status();
  }));
  return job;
}

absl::StatusOr<std::vector<JobRecord>> Store::ListJobs(const JobFilter& filter) {
  // Values are bound, so that the cache of prepared statements stays small.
  std::string sql = absl::StrCat("SELECT ", kJobColumns,
                                 " FROM jobs WHERE project = ?1 AND (?2 = 0 OR seq < ?2)");
  if (!filter.states.empty())
    absl::StrAppend(&sql, " AND state IN (", StateList(filter.states), ")");
  for (size_t i = 0; i < filter.labels.size(); ++i) {
    absl::StrAppend(&sql,
                    " AND EXISTS (SELECT 1 FROM json_each(labels) WHERE key = ? AND value = ?)");
  }
  absl::StrAppend(&sql, " ORDER BY seq DESC LIMIT ?");
  std::vector<JobRecord> jobs;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query, db.Prepare(sql));
    int index = 2;
    query.Bind(filter.project, filter.before_seq);
    for (const auto& [key, value] : filter.labels) {
      query.Text(++index, key);
      query.Text(++index, value);
    }
    query.Int(++index, filter.limit);
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::OkStatus();
      jobs.push_back(ReadJob(query));
    }
  }));
  return jobs;
}

absl::StatusOr<std::vector<JobRecord>> Store::JobsIn(std::vector<JobState> states) {
  std::vector<JobRecord> jobs;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query,
                     db.Prepare(absl::StrCat("SELECT ", kJobColumns, " FROM jobs WHERE state IN (",
                                             StateList(states), ") ORDER BY seq")));
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::OkStatus();
      jobs.push_back(ReadJob(query));
    }
  }));
  return jobs;
}

absl::StatusOr<std::map<JobState, int64_t>> Store::CountJobs() {
  std::map<JobState, int64_t> counts;
  for (JobState state : AllJobStates()) counts[state] = 0;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT state, count(*) FROM jobs GROUP BY state"));
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::OkStatus();
      counts[static_cast<JobState>(query.IntAt(0))] = query.IntAt(1);
    }
  }));
  return counts;
}

absl::StatusOr<std::vector<AttemptRecord>> Store::ListAttempts(const JobId& id) {
  std::vector<AttemptRecord> attempts;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    {
      ASSIGN_OR_RETURN(Query query, db.Prepare(absl::StrCat("SELECT ", kAttemptColumns,
                                                            " FROM attempts WHERE job = ? ORDER "
                                                            "BY number")));
      query.Bind(id.value());
      while (true) {
        ASSIGN_OR_RETURN(const bool row, query.Step());
        if (!row) break;
        attempts.push_back(ReadAttempt(query));
      }
    }
    for (AttemptRecord& attempt : attempts) {
      ASSIGN_OR_RETURN(const auto placements, LoadPlacements(db, attempt.id));
      for (const PlacementRecord& p : placements) attempt.nodes.push_back(p.node.value());
    }
    return absl::OkStatus();
  }));
  return attempts;
}

absl::StatusOr<AttemptRecord> Store::GetAttempt(const AttemptId& id) {
  absl::StatusOr<AttemptRecord> attempt;
  RETURN_IF_ERROR(Read([&](Database& db) {
    attempt = LoadAttempt(db, id);
    return attempt.status();
  }));
  return attempt;
}

absl::StatusOr<std::vector<EventRecord>> Store::ReadEvents(const JobId& id, int64_t after_job_seq,
                                                           int limit) {
  std::vector<EventRecord> events;
  RETURN_IF_ERROR(
      Read([&](Database& db) { return AppendEvents(db, id, after_job_seq, limit, events); }));
  return events;
}

absl::StatusOr<History> Store::ReadHistory(const JobId& id, const HistoryPosition& after,
                                           int max_events, int max_steps) {
  History history;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    RETURN_IF_ERROR(db.Execute("BEGIN"));
    absl::Status status = AppendEvents(db, id, after.event, max_events, history.events);
    if (status.ok()) status = AppendSteps(db, id, after, max_steps, history.steps);
    const absl::Status end = db.Execute("COMMIT");
    return status.ok() ? end : status;
  }));
  return history;
}

absl::StatusOr<StepRecord> Store::LatestStep(const JobId& id) {
  StepRecord step;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query,
                     db.Prepare("SELECT id, after_event, attempt, step, raw FROM step_metrics "
                                "WHERE job = ? ORDER BY id DESC LIMIT 1"));
    ASSIGN_OR_RETURN(const bool row, query.Bind(id.value()).Step());
    if (!row) return absl::OkStatus();
    step = {query.IntAt(0), query.IntAt(1), static_cast<int32_t>(query.IntAt(2)), query.IntAt(3),
            query.TextAt(4)};
    return absl::OkStatus();
  }));
  return step;
}

absl::StatusOr<std::vector<Reservation>> Store::Reservations() {
  std::vector<Reservation> out;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT node, device, job, attempt FROM reservations "
                                             "ORDER BY node, device"));
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::OkStatus();
      out.push_back({NodeId(query.TextAt(0)), static_cast<int32_t>(query.IntAt(1)),
                     AttemptId{JobId(query.TextAt(2)), static_cast<int32_t>(query.IntAt(3))}});
    }
  }));
  return out;
}

absl::StatusOr<std::vector<NodeRecord>> Store::ListNodes() {
  std::vector<NodeRecord> nodes;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    ASSIGN_OR_RETURN(Query query, db.Prepare(absl::StrCat("SELECT ", kNodeColumns,
                                                          " FROM nodes ORDER BY name")));
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::OkStatus();
      nodes.push_back(ReadNode(query));
    }
  }));
  return nodes;
}

absl::StatusOr<std::vector<AttemptId>> Store::FindStale(const NodeId& node,
                                                        const std::vector<AttemptId>& live) {
  std::vector<AttemptId> stale;
  RETURN_IF_ERROR(Read([&](Database& db) -> absl::Status {
    for (const AttemptId& id : live) {
      const absl::Status open = LoadOpenPlacement(db, node, id).status();
      if (absl::IsAborted(open)) {
        stale.push_back(id);
      } else if (!open.ok()) {
        return open;
      }
    }
    return absl::OkStatus();
  }));
  return stale;
}

absl::Status Store::CheckFence(const NodeId& node, const Incarnation& incarnation,
                               const AttemptId& attempt) {
  return Read([&](Database& db) -> absl::Status {
    RETURN_IF_ERROR(CheckIncarnation(db, node, incarnation));
    return LoadOpenPlacement(db, node, attempt).status();
  });
}

}  // namespace switchyard
