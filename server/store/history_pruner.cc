#include "server/store/history_pruner.h"

#include "base/log.h"
#include "base/status_macros.h"
#include "server/store/rows.h"
#include "server/store/transaction.h"

namespace switchyard {
namespace {

constexpr absl::Duration kEvery = absl::Minutes(10);
// Rows of one write: some milliseconds.
constexpr int64_t kRowsPerWrite = 2000;

}  // namespace

// Of the job that ended first, at most kRowsPerWrite rows. False: none is due.
absl::StatusOr<bool> Store::PruneHistory(absl::Time ended_before) {
  bool found = false;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    std::string job;
    int64_t last = 0;
    {
      ASSIGN_OR_RETURN(Query query,
                       tx.db.Prepare("SELECT name, (SELECT max(job_seq) FROM events WHERE job = "
                                     "name) FROM jobs WHERE end_time < ? AND first_event = 1 "
                                     "ORDER BY end_time LIMIT 1"));
      ASSIGN_OR_RETURN(found, query.Bind(ToRow(ended_before)).Step());
      if (!found) return absl::OkStatus();
      job = query.TextAt(0);
      last = query.IntAt(1);
    }
    ASSIGN_OR_RETURN(Query steps,
                     tx.db.Prepare("DELETE FROM step_metrics WHERE id IN (SELECT id FROM "
                                   "step_metrics WHERE job = ? ORDER BY id LIMIT ?)"));
    ASSIGN_OR_RETURN(int64_t removed, steps.Bind(job, kRowsPerWrite).Run());
    if (removed == kRowsPerWrite) return absl::OkStatus();
    ASSIGN_OR_RETURN(Query events, tx.db.Prepare("DELETE FROM events WHERE seq IN (SELECT seq FROM "
                                                 "events WHERE job = ? AND job_seq < ? ORDER BY "
                                                 "job_seq LIMIT ?)"));
    ASSIGN_OR_RETURN(removed, events.Bind(job, last, kRowsPerWrite).Run());
    if (removed == kRowsPerWrite) return absl::OkStatus();
    ASSIGN_OR_RETURN(Query done, tx.db.Prepare("UPDATE jobs SET first_event = ? WHERE name = ?"));
    return done.Bind(std::max<int64_t>(last, 2), job).Run().status();
  }));
  return found;
}

absl::StatusOr<bool> Store::PruneRequests(absl::Time made_before) {
  int64_t removed = 0;
  RETURN_IF_ERROR(Write([&](Transaction& tx) -> absl::Status {
    ASSIGN_OR_RETURN(Query query,
                     tx.db.Prepare("DELETE FROM idempotency WHERE rowid IN (SELECT i.rowid FROM "
                                   "idempotency i JOIN jobs j ON j.name = i.job WHERE "
                                   "i.create_time < ? AND j.end_time IS NOT NULL LIMIT ?)"));
    ASSIGN_OR_RETURN(removed, query.Bind(ToRow(made_before), kRowsPerWrite).Run());
    return absl::OkStatus();
  }));
  return removed > 0;
}

absl::Status HistoryPruner::RunOnce(const StopToken& stop) {
  const absl::Time now = clock_.Now();
  bool more = config_.keep_history < absl::InfiniteDuration();
  while (more && !stop.StopRequested()) {
    ASSIGN_OR_RETURN(more, store_.PruneHistory(now - config_.keep_history));
  }
  more = config_.keep_requests < absl::InfiniteDuration();
  while (more && !stop.StopRequested()) {
    ASSIGN_OR_RETURN(more, store_.PruneRequests(now - config_.keep_requests));
  }
  return absl::OkStatus();
}

void HistoryPruner::Start() {
  thread_ = Thread("pruner", [this](const StopToken& stop) {
    do {
      const absl::Status status = RunOnce(stop);
      if (!status.ok()) SY_LOG(WARNING) << "pruning failed error=" << status.message();
    } while (!stop.WaitForStop(kEvery));
  });
}

}  // namespace switchyard
