// Copies of the database, and what can be done when the database is lost or damaged. Used by the
// subcommands of switchyardd; all but BackUp need a coordinator that has ended.
#ifndef SWITCHYARD_SERVER_STORE_BACKUP_H_
#define SWITCHYARD_SERVER_STORE_BACKUP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard {

struct DatabaseSummary {
  int64_t schema_version = 0;
  int64_t epoch = 0;
  int64_t restore_generation = 0;
  int64_t jobs = 0;
  int64_t final_jobs = 0;
  int64_t checkpoints = 0;  // committed
  int64_t events = 0;
};

// Copies the database of `folder` to the file `to`, as of one moment, while a coordinator may be
// using it, and proves the copy: integrity_check, foreign_key_check. The copy is made by a reader,
// which delays no write; `to` appears whole, by rename, and may replace an older backup.
// Errors: NotFound: no database. DataLoss: it is damaged; `to` is as before.
absl::StatusOr<DatabaseSummary> BackUp(const std::string& folder, const std::string& to);

// Reads all of the database of `folder`: integrity_check and foreign_key_check.
// Errors: NotFound; DataLoss with what is wrong, at most the first three findings.
absl::StatusOr<DatabaseSummary> CheckState(const std::string& folder);

struct RestoreReport {
  DatabaseSummary restored;
  // Folders of jobs that the backup does not know: made after it.
  std::vector<std::string> unknown_jobs;
  // Committed checkpoints found in the artifact tree that the backup did not know; rows were made.
  std::vector<std::string> adopted_checkpoints;
  // Rows of checkpoints whose folders are no longer there; they are marked as deleted.
  std::vector<std::string> missing_checkpoints;
  std::string replaced;  // where the former database went; empty: there was none
};

// Puts the backup `from` in the place of the database of `folder`, which is kept beside it. Nothing
// may run twice afterwards: the coordinator's epoch and the numbers of new attempts go past all
// that the lost history can have used, resume tokens become invalid (restore_generation + 1), and
// the next start waits until every lease of the time before has ended before it places anything.
// Compares with `artifact_root` and takes over checkpoints that were published after the backup.
// Errors: FailedPrecondition: a coordinator runs, or the file is newer than this binary or not
// ours. DataLoss: the backup is damaged; nothing was changed.
absl::StatusOr<RestoreReport> Restore(const std::string& folder, const std::string& from,
                                      const std::string& artifact_root, absl::Time now);

struct RecoverReport {
  RestoreReport restored;
  // Rows that could be read, and tables of which a part could not.
  int64_t rows = 0;
  std::vector<std::string> damaged_tables;
};

// Without a backup: reads what can be read of a damaged database, row by row, into a new one, drops
// rows whose parents are gone, and goes on as Restore does. Jobs that the database no longer knows
// are listed, with their folders.
// Errors: as Restore; NotFound: no database.
absl::StatusOr<RecoverReport> Recover(const std::string& folder, const std::string& artifact_root,
                                      absl::Time now);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_BACKUP_H_
