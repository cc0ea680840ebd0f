#include "server/store/migrations.h"

#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

constexpr int64_t kApplicationId = 0x53595244;  // "SYRD"

// Times are microseconds since the epoch, durations milliseconds. Enums are the numbers of
// job_state.h. Labels, devices and failures are JSON.
constexpr const char* kSteps[] = {
    R"sql(
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;

CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  uid TEXT NOT NULL UNIQUE,
  project TEXT NOT NULL,
  display_name TEXT NOT NULL,
  labels TEXT NOT NULL,
  spec BLOB NOT NULL,
  recipe TEXT NOT NULL,
  num_ranks INTEGER NOT NULL CHECK (num_ranks > 0),
  cpu_only INTEGER NOT NULL CHECK (cpu_only IN (0, 1)),
  max_retries INTEGER NOT NULL CHECK (max_retries >= 0),
  keep_last INTEGER NOT NULL CHECK (keep_last >= 0),
  resumable INTEGER NOT NULL CHECK (resumable IN (0, 1)),
  version INTEGER NOT NULL CHECK (version > 0),
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 9),
  pending INTEGER NOT NULL CHECK (pending BETWEEN 0 AND 9),
  message TEXT NOT NULL,
  stop_target INTEGER NOT NULL CHECK (stop_target BETWEEN 0 AND 4),
  stop_grace_ms INTEGER NOT NULL CHECK (stop_grace_ms >= 0),
  current_attempt INTEGER NOT NULL CHECK (current_attempt >= 0),
  retries_used INTEGER NOT NULL CHECK (retries_used BETWEEN 0 AND max_retries),
  backoff_ms INTEGER NOT NULL CHECK (backoff_ms >= 0),
  failure TEXT,
  validation_loss REAL,
  create_time INTEGER NOT NULL,
  update_time INTEGER NOT NULL,
  start_time INTEGER,
  end_time INTEGER,
  CHECK ((state = 5) = (stop_target <> 0)),
  CHECK ((state IN (7, 8, 9)) = (end_time IS NOT NULL)),
  CHECK ((state = 8) = (failure IS NOT NULL))
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, seq);
CREATE INDEX jobs_by_project ON jobs (project, seq);
CREATE TRIGGER jobs_final BEFORE UPDATE OF state ON jobs
WHEN OLD.state IN (7, 8, 9) AND NEW.state <> OLD.state
BEGIN SELECT RAISE(ABORT, 'a job never leaves a final state'); END;

CREATE TABLE attempts (
  job TEXT NOT NULL REFERENCES jobs (name),
  number INTEGER NOT NULL CHECK (number > 0),
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 10),
  started INTEGER NOT NULL CHECK (started IN (0, 1)),
  resume_from TEXT NOT NULL,
  failure TEXT,
  create_time INTEGER NOT NULL,
  end_time INTEGER,
  PRIMARY KEY (job, number),
  CHECK ((state >= 6) = (end_time IS NOT NULL))
) STRICT;
CREATE UNIQUE INDEX one_open_attempt ON attempts (job) WHERE state < 6;
CREATE TRIGGER attempts_final BEFORE UPDATE OF state ON attempts
WHEN OLD.state >= 6 AND NEW.state <> OLD.state
BEGIN SELECT RAISE(ABORT, 'an attempt never leaves a final state'); END;

CREATE TABLE placements (
  job TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  node TEXT NOT NULL,
  node_rank INTEGER NOT NULL CHECK (node_rank >= 0),
  first_rank INTEGER NOT NULL CHECK (first_rank >= 0),
  devices TEXT NOT NULL,
  phase INTEGER NOT NULL CHECK (phase BETWEEN 1 AND 6),
  port INTEGER NOT NULL,
  succeeded INTEGER NOT NULL CHECK (succeeded IN (0, 1)),
  stopped INTEGER NOT NULL CHECK (stopped IN (0, 1)),
  PRIMARY KEY (job, attempt, node_rank),
  UNIQUE (job, attempt, node),
  FOREIGN KEY (job, attempt) REFERENCES attempts (job, number)
) STRICT;
CREATE INDEX open_placements ON placements (node) WHERE phase < 5;

-- A device belongs to one open part of one attempt: the database itself refuses a double booking.
CREATE TABLE reservations (
  node TEXT NOT NULL,
  device INTEGER NOT NULL,
  job TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  PRIMARY KEY (node, device)
) STRICT;

CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  job TEXT NOT NULL REFERENCES jobs (name),
  job_seq INTEGER NOT NULL CHECK (job_seq > 0),
  time INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN
    ('STATE', 'ATTEMPT', 'CHECKPOINT', 'VALIDATION', 'WARNING', 'PHASE')),
  message TEXT NOT NULL,
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 9),
  attempt INTEGER NOT NULL,
  UNIQUE (job, job_seq)
) STRICT;

CREATE TABLE step_metrics (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  job TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  step INTEGER NOT NULL CHECK (step >= 0),
  after_event INTEGER NOT NULL,
  raw BLOB NOT NULL,
  UNIQUE (job, attempt, step),
  FOREIGN KEY (job, attempt) REFERENCES attempts (job, number)
) STRICT;
CREATE INDEX step_metrics_by_job ON step_metrics (job, id);

CREATE TABLE nodes (
  name TEXT PRIMARY KEY,
  incarnation TEXT NOT NULL,
  boot_id TEXT NOT NULL,
  address TEXT NOT NULL,
  version TEXT NOT NULL,
  devices TEXT NOT NULL,
  lost INTEGER NOT NULL CHECK (lost IN (0, 1)),
  acknowledged_report INTEGER NOT NULL CHECK (acknowledged_report >= 0)
) STRICT;

CREATE TABLE idempotency (
  project TEXT NOT NULL,
  method TEXT NOT NULL,
  request_id TEXT NOT NULL,
  payload BLOB NOT NULL,
  job TEXT NOT NULL REFERENCES jobs (name),
  create_time INTEGER NOT NULL,
  PRIMARY KEY (project, method, request_id)
) STRICT;

CREATE TABLE checkpoints (
  job TEXT NOT NULL REFERENCES jobs (name),
  step INTEGER NOT NULL CHECK (step >= 0),
  attempt INTEGER NOT NULL,
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 4),
  path TEXT NOT NULL,
  staging_path TEXT NOT NULL,
  manifest_crc32c INTEGER NOT NULL,
  size_bytes INTEGER NOT NULL,
  loss REAL,
  validation_loss REAL,
  final INTEGER NOT NULL CHECK (final IN (0, 1)),
  create_time INTEGER NOT NULL,
  PRIMARY KEY (job, step)
) STRICT;
)sql",
    // The order of commits within a job: a retry may commit lower steps after higher ones.
    R"sql(
ALTER TABLE checkpoints ADD COLUMN commit_seq INTEGER NOT NULL DEFAULT 0 CHECK (commit_seq >= 0);
UPDATE checkpoints SET commit_seq = rowid WHERE state IN (2, 4);
)sql",
    // Which agent of a machine; empty for nodes registered before.
    R"sql(
ALTER TABLE nodes ADD COLUMN state_folder TEXT NOT NULL DEFAULT '';
)sql",
    // Priorities, budgets judged by progress, stops with reasons, conditions, operators' acts.
    // Events get a new kind, which only a new table can allow.
    R"sql(
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN max_run_time_ms INTEGER NOT NULL DEFAULT 0
  CHECK (max_run_time_ms >= 0);
ALTER TABLE jobs ADD COLUMN max_user_retries INTEGER NOT NULL DEFAULT 0
  CHECK (max_user_retries >= 0);
ALTER TABLE jobs ADD COLUMN no_progress_limit INTEGER NOT NULL DEFAULT 3
  CHECK (no_progress_limit > 0);
ALTER TABLE jobs ADD COLUMN checkpoint_every INTEGER NOT NULL DEFAULT 0
  CHECK (checkpoint_every >= 0);
ALTER TABLE jobs ADD COLUMN stop_reason INTEGER NOT NULL DEFAULT 0
  CHECK (stop_reason BETWEEN 0 AND 6);
ALTER TABLE jobs ADD COLUMN user_retries_used INTEGER NOT NULL DEFAULT 0
  CHECK (user_retries_used BETWEEN 0 AND max_user_retries);
ALTER TABLE jobs ADD COLUMN no_progress INTEGER NOT NULL DEFAULT 0 CHECK (no_progress >= 0);
ALTER TABLE jobs ADD COLUMN progress_step INTEGER NOT NULL DEFAULT 0 CHECK (progress_step >= 0);
ALTER TABLE jobs ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN avoided TEXT NOT NULL DEFAULT '[]';
ALTER TABLE jobs ADD COLUMN run_time_ms INTEGER NOT NULL DEFAULT 0 CHECK (run_time_ms >= 0);
ALTER TABLE attempts ADD COLUMN stop_reason INTEGER NOT NULL DEFAULT 0
  CHECK (stop_reason BETWEEN 0 AND 6);
ALTER TABLE nodes ADD COLUMN scheduling INTEGER NOT NULL DEFAULT 1
  CHECK (scheduling BETWEEN 1 AND 3);
ALTER TABLE nodes ADD COLUMN scheduling_message TEXT NOT NULL DEFAULT '';

CREATE TABLE conditions (
  job TEXT NOT NULL REFERENCES jobs (name),
  type INTEGER NOT NULL CHECK (type BETWEEN 1 AND 5),
  message TEXT NOT NULL,
  since INTEGER NOT NULL,
  PRIMARY KEY (job, type)
) STRICT;

CREATE TABLE audit (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  time INTEGER NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  target TEXT NOT NULL,
  message TEXT NOT NULL
) STRICT;

CREATE TABLE new_events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  job TEXT NOT NULL REFERENCES jobs (name),
  job_seq INTEGER NOT NULL CHECK (job_seq > 0),
  time INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN
    ('STATE', 'ATTEMPT', 'CHECKPOINT', 'VALIDATION', 'WARNING', 'PHASE', 'CONDITION')),
  message TEXT NOT NULL,
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 9),
  attempt INTEGER NOT NULL,
  UNIQUE (job, job_seq)
) STRICT;
INSERT INTO new_events SELECT seq, job, job_seq, time, kind, message, state, attempt FROM events;
DROP TABLE events;
ALTER TABLE new_events RENAME TO events;
)sql",
    // The agent over the boots of its machine: a reboot proves that what ran before it is gone.
    R"sql(
ALTER TABLE nodes ADD COLUMN agent_id TEXT NOT NULL DEFAULT '';
ALTER TABLE nodes ADD COLUMN boots INTEGER NOT NULL DEFAULT 0 CHECK (boots >= 0);
)sql",
    // Nodes that come and go; attempts that cost no budget. A row of nodes is replaced with every
    // registration, quarantines stay.
    R"sql(
CREATE TABLE quarantines (
  node TEXT PRIMARY KEY,
  level INTEGER NOT NULL CHECK (level > 0),
  message TEXT NOT NULL
) STRICT;
ALTER TABLE jobs ADD COLUMN free_failures INTEGER NOT NULL DEFAULT 0 CHECK (free_failures >= 0);
ALTER TABLE jobs ADD COLUMN fell_back INTEGER NOT NULL DEFAULT 0 CHECK (fell_back IN (0, 1));
)sql",
    // Retention by more than the last; a deletion is a state of its own while files go, which only
    // a new table can allow. Folders that deletions of before left are removed once more.
    R"sql(
ALTER TABLE jobs ADD COLUMN keep_every INTEGER NOT NULL DEFAULT 0 CHECK (keep_every >= 0);
ALTER TABLE jobs ADD COLUMN keep_best INTEGER NOT NULL DEFAULT 0 CHECK (keep_best >= 0);
ALTER TABLE jobs ADD COLUMN restore_from TEXT NOT NULL DEFAULT '';
CREATE INDEX jobs_by_restore_from ON jobs (restore_from) WHERE restore_from <> '';

CREATE TABLE new_checkpoints (
  job TEXT NOT NULL REFERENCES jobs (name),
  step INTEGER NOT NULL CHECK (step >= 0),
  attempt INTEGER NOT NULL,
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 5),
  path TEXT NOT NULL,
  staging_path TEXT NOT NULL,
  manifest_crc32c INTEGER NOT NULL,
  size_bytes INTEGER NOT NULL,
  loss REAL,
  validation_loss REAL,
  final INTEGER NOT NULL CHECK (final IN (0, 1)),
  create_time INTEGER NOT NULL,
  commit_seq INTEGER NOT NULL DEFAULT 0 CHECK (commit_seq >= 0),
  pinned INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1)),
  PRIMARY KEY (job, step)
) STRICT;
INSERT INTO new_checkpoints SELECT job, step, attempt, state, path, staging_path, manifest_crc32c,
  size_bytes, loss, validation_loss, final, create_time, commit_seq, 0 FROM checkpoints;
UPDATE new_checkpoints SET state = 5 WHERE state = 4;
DROP TABLE checkpoints;
ALTER TABLE new_checkpoints RENAME TO checkpoints;
CREATE INDEX checkpoints_by_state ON checkpoints (state, size_bytes);
)sql",
    // How long a lease an agent may believe in: that of the flag's default for nodes of before. The
    // first event that is kept of a job.
    R"sql(
ALTER TABLE nodes ADD COLUMN lease_ttl_ms INTEGER NOT NULL DEFAULT 120000
  CHECK (lease_ttl_ms >= 0);
ALTER TABLE jobs ADD COLUMN first_event INTEGER NOT NULL DEFAULT 1 CHECK (first_event > 0);
CREATE INDEX jobs_to_prune ON jobs (end_time) WHERE end_time IS NOT NULL AND first_event = 1;
CREATE INDEX idempotency_by_time ON idempotency (create_time);
)sql",
};

}  // namespace

int CurrentSchemaVersion() { return static_cast<int>(std::size(kSteps)); }

absl::Status Migrate(Database& db, absl::string_view uuid) {
  ASSIGN_OR_RETURN(const int64_t version, db.QueryInt("PRAGMA user_version"));
  ASSIGN_OR_RETURN(const int64_t application, db.QueryInt("PRAGMA application_id"));
  ASSIGN_OR_RETURN(const int64_t objects, db.QueryInt("SELECT count(*) FROM sqlite_schema"));
  if (objects > 0 && application != kApplicationId) {
    return absl::FailedPreconditionError(
        absl::StrCat("open database: application_id is ", application, ", Switchyard's is ",
                     kApplicationId, ": the file belongs to another program"));
  }
  if (version > CurrentSchemaVersion()) {
    return absl::FailedPreconditionError(
        absl::StrCat("open database: its schema version is ", version, ", this switchyardd knows ",
                     CurrentSchemaVersion(), ": use the newer switchyardd"));
  }
  for (int64_t step = version; step < CurrentSchemaVersion(); ++step) {
    std::string sql = absl::StrCat("BEGIN IMMEDIATE;", kSteps[step]);
    if (step == 0) {
      absl::StrAppend(&sql, "PRAGMA application_id=", kApplicationId,
                      "; INSERT INTO meta VALUES ('coordinator_epoch', '0'), ('db_uuid', '",
                      absl::StrReplaceAll(uuid, {{"'", "''"}}), "');");
    }
    absl::StrAppend(&sql, "PRAGMA user_version=", step + 1, "; COMMIT;");
    if (absl::Status status = db.Execute(sql); !status.ok()) {
      db.Execute("ROLLBACK").IgnoreError();  // the step's own error is the one to tell
      return status;
    }
    SY_LOG(INFO) << "database migrated to=" << step + 1;
  }
  return absl::OkStatus();
}

}  // namespace switchyard
