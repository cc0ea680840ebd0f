#include "server/store/backup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/crc32c.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/records.h"
#include "server/store/artifact_root.h"
#include "server/store/database.h"
#include "server/store/migrations.h"
#include "server/store/replacement.h"
#include "server/store/rows.h"
#include "server/store/state_folder.h"

namespace switchyard {
namespace {

// Far past anything that the lost history can have reached.
constexpr int64_t kEpochGap = 1'000'000;
constexpr int64_t kAttemptGap = 1'000;

Failpoint before_rename("backup.before_rename", FailpointKind::kFallible);
Failpoint before_replace("restore.before_rename", FailpointKind::kEvent);

// A folder that is not the one of the database's artifacts, or a file system that is not mounted,
// would look like one from which all checkpoints have vanished.
absl::Status CheckRootOf(Database& db, const std::string& artifact_root) {
  ASSIGN_OR_RETURN(Query query,
                   db.Prepare("SELECT value FROM meta WHERE key = 'artifact_root_id'"));
  ASSIGN_OR_RETURN(const bool known, query.Step());
  if (!known || artifact_root.empty()) return absl::OkStatus();
  const absl::StatusOr<std::string> id = ReadArtifactRootId(artifact_root);
  if (id.ok() && *id == query.TextAt(0)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "compare with the artifact root ", artifact_root, ": it is not the one of this database (",
      id.ok() ? "its id differs" : id.status().message(), "); is it mounted?"));
}

absl::Status SyncFile(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open", path, errno);
  return ::fsync(fd.get()) == 0 ? absl::OkStatus() : ErrnoStatus("fsync", path, errno);
}

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

void RemoveDatabase(const std::string& path) {
  for (const char* suffix : {"", "-wal", "-shm", "-journal"}) ::unlink((path + suffix).c_str());
}

bool Exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

absl::StatusOr<int64_t> MetaOr(Database& db, const std::string& key, int64_t fallback) {
  ASSIGN_OR_RETURN(Query query,
                   db.Prepare("SELECT CAST(value AS INTEGER) FROM meta WHERE key = ?"));
  ASSIGN_OR_RETURN(const bool found, query.Bind(key).Step());
  return found ? query.IntAt(0) : fallback;
}

absl::Status SetMeta(Database& db, const std::string& key, int64_t value) {
  ASSIGN_OR_RETURN(Query query, db.Prepare("INSERT OR REPLACE INTO meta VALUES (?, ?)"));
  return query.Bind(key, absl::StrCat(value)).Run().status();
}

absl::StatusOr<DatabaseSummary> Summarize(Database& db) {
  DatabaseSummary out;
  ASSIGN_OR_RETURN(out.schema_version, db.QueryInt("PRAGMA user_version"));
  ASSIGN_OR_RETURN(out.epoch, MetaOr(db, "coordinator_epoch", 0));
  ASSIGN_OR_RETURN(out.restore_generation, MetaOr(db, "restore_generation", 0));
  ASSIGN_OR_RETURN(out.jobs, db.QueryInt("SELECT count(*) FROM jobs"));
  ASSIGN_OR_RETURN(out.final_jobs,
                   db.QueryInt("SELECT count(*) FROM jobs WHERE state IN (7, 8, 9)"));
  ASSIGN_OR_RETURN(out.checkpoints,
                   db.QueryInt("SELECT count(*) FROM checkpoints WHERE state = 2"));
  ASSIGN_OR_RETURN(out.events, db.QueryInt("SELECT count(*) FROM events"));
  return out;
}

// ---- comparison with the artifact tree ----

// <root>/<project>/<job>, for each job.
std::vector<std::pair<std::string, JobId>> JobFolders(const std::string& root) {
  std::vector<std::pair<std::string, JobId>> out;
  std::error_code error;
  for (const auto& project : std::filesystem::directory_iterator(root, error)) {
    std::error_code inner;
    for (const auto& job : std::filesystem::directory_iterator(project.path(), inner)) {
      if (!Exists(job.path().string() + "/job.json")) continue;
      out.emplace_back(job.path().string(),
                       JobId(absl::StrCat("projects/", project.path().filename().string(), "/jobs/",
                                          job.path().filename().string())));
    }
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return out;
}

// A published folder as a row, when its manifest is this job's and every file has its size and
// checksum.
absl::StatusOr<CheckpointRecord> ReadPublished(const std::string& folder, const JobId& job,
                                               const std::string& uid) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(folder + "/switchyard/manifest.json"));
  ASSIGN_OR_RETURN(const Json manifest, ParseJson(text, folder));
  ASSIGN_OR_RETURN(const std::string manifest_uid, JsonGet<std::string>(manifest, "job_uid"));
  if (manifest_uid != uid) return absl::NotFoundError("of another job of this name");
  CheckpointRecord out;
  out.job = job;
  ASSIGN_OR_RETURN(out.step, JsonGet<int64_t>(manifest, "step"));
  ASSIGN_OR_RETURN(const int64_t attempt, JsonGet<int64_t>(manifest, "attempt"));
  ASSIGN_OR_RETURN(out.final, JsonGetOr<bool>(manifest, "final", false));
  out.attempt = static_cast<int32_t>(attempt);
  out.loss = JsonGetOr<double>(manifest, "loss", 0).value_or(0);
  out.validation_loss = JsonGetOr<double>(manifest, "validation_loss", 0).value_or(0);
  out.path = folder;
  out.manifest_crc32c = Crc32c(text);
  out.size_bytes = static_cast<int64_t>(text.size());
  const Json* files = JsonFind(manifest, "files");
  if (files == nullptr || !files->is_array()) return absl::DataLossError("no files");
  for (const Json& file : *files) {
    ASSIGN_OR_RETURN(const std::string name, JsonGet<std::string>(file, "name"));
    ASSIGN_OR_RETURN(const std::string crc, JsonGet<std::string>(file, "crc32c"));
    if (absl::StrContains(name, "..")) return absl::DataLossError("a bad name");
    ASSIGN_OR_RETURN(const std::string data, ReadFile(absl::StrCat(folder, "/", name)));
    if (absl::StrFormat("%08x", Crc32c(data)) != crc) return absl::DataLossError("a bad file");
    out.size_bytes += static_cast<int64_t>(data.size());
  }
  return out;
}

absl::Status AdoptCheckpoints(Database& db, const std::string& job_folder, const JobId& job,
                              const std::string& uid, RestoreReport& report) {
  std::error_code error;
  std::vector<CheckpointRecord> found;
  for (const auto& entry :
       std::filesystem::directory_iterator(job_folder + "/checkpoints", error)) {
    absl::StatusOr<CheckpointRecord> read = ReadPublished(entry.path().string(), job, uid);
    if (read.ok()) found.push_back(*std::move(read));
  }
  std::sort(found.begin(), found.end(), [](const CheckpointRecord& a, const CheckpointRecord& b) {
    return std::pair(a.attempt, a.step) < std::pair(b.attempt, b.step);
  });
  for (const CheckpointRecord& c : found) {
    ASSIGN_OR_RETURN(
        Query query,
        db.Prepare("INSERT INTO checkpoints (job, step, attempt, state, path, staging_path, "
                   "manifest_crc32c, size_bytes, loss, validation_loss, final, create_time, "
                   "commit_seq) SELECT ?1, ?2, ?3, 2, ?4, '', ?5, ?6, ?7, ?8, ?9, "
                   "(SELECT update_time FROM jobs WHERE name = ?1), "
                   "(SELECT coalesce(max(commit_seq), 0) + 1 FROM checkpoints) "
                   "WHERE NOT EXISTS (SELECT 1 FROM checkpoints WHERE job = ?1 AND step = ?2 AND "
                   "state = 2) ON CONFLICT (job, step) DO UPDATE SET attempt = excluded.attempt, "
                   "state = 2, path = excluded.path, manifest_crc32c = excluded.manifest_crc32c, "
                   "size_bytes = excluded.size_bytes, final = excluded.final, commit_seq = "
                   "excluded.commit_seq"));
    query.Bind(job.value(), c.step, c.attempt, c.path, c.manifest_crc32c, c.size_bytes, c.loss,
               c.validation_loss, c.final);
    ASSIGN_OR_RETURN(const int64_t changed, query.Run());
    if (changed > 0) report.adopted_checkpoints.push_back(c.path);
  }
  return absl::OkStatus();
}

absl::Status CompareWithArtifacts(Database& db, const std::string& root, RestoreReport& report) {
  for (const auto& [folder, job] : JobFolders(root)) {
    ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT uid FROM jobs WHERE name = ?"));
    ASSIGN_OR_RETURN(const bool known, query.Bind(job.value()).Step());
    if (!known) {
      report.unknown_jobs.push_back(folder);
      continue;
    }
    RETURN_IF_ERROR(AdoptCheckpoints(db, folder, job, query.TextAt(0), report));
  }
  std::vector<std::pair<std::string, std::string>> rows;
  {
    ASSIGN_OR_RETURN(Query query,
                     db.Prepare("SELECT job, path FROM checkpoints WHERE state = 2 ORDER BY 2"));
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) break;
      rows.emplace_back(query.TextAt(0), query.TextAt(1));
    }
  }
  for (const auto& [job, path] : rows) {
    if (Exists(path)) continue;
    ASSIGN_OR_RETURN(Query query,
                     db.Prepare("UPDATE checkpoints SET state = 4 WHERE job = ? AND path = ?"));
    RETURN_IF_ERROR(query.Bind(job, path).Run().status());
    report.missing_checkpoints.push_back(path);
  }
  return absl::OkStatus();
}

// ---- putting a database in place ----

// What the database that goes away still tells; zeros when it tells nothing.
struct Before {
  int64_t epoch = 0;
  int64_t generation = 0;
  int64_t attempt = 0;
};

Before ReadBefore(const std::string& path) {
  Before out;
  if (!Exists(path)) return out;
  const auto db = Database::Open(path, OpenMode::kReadOnly);
  if (!db.ok()) return out;
  out.epoch = MetaOr(**db, "coordinator_epoch", 0).value_or(0);
  out.generation = MetaOr(**db, "restore_generation", 0).value_or(0);
  out.attempt = (*db)->QueryInt("SELECT coalesce(max(number), 0) FROM attempts").value_or(0);
  return out;
}

// Makes `path`, a whole database that nobody uses, the one of `folder`. The lock is held.
absl::StatusOr<RestoreReport> PutInPlace(const std::string& folder, const std::string& path,
                                         const std::string& artifact_root, absl::Time now) {
  RestoreReport report;
  const std::string target = DatabasePath(folder);
  const Before before = ReadBefore(target);
  {
    ASSIGN_OR_RETURN(auto db, Database::Open(path, OpenMode::kReadWrite));
    RETURN_IF_ERROR(Migrate(*db, ""));
    RETURN_IF_ERROR(db->Execute("BEGIN IMMEDIATE"));
    ASSIGN_OR_RETURN(const int64_t epoch, MetaOr(*db, "coordinator_epoch", 0));
    ASSIGN_OR_RETURN(const int64_t generation, MetaOr(*db, "restore_generation", 0));
    ASSIGN_OR_RETURN(const int64_t attempt,
                     db->QueryInt("SELECT coalesce(max(number), 0) FROM attempts"));
    RETURN_IF_ERROR(SetMeta(*db, "coordinator_epoch", std::max(epoch, before.epoch) + kEpochGap));
    RETURN_IF_ERROR(
        SetMeta(*db, "restore_generation", std::max(generation, before.generation) + 1));
    RETURN_IF_ERROR(SetMeta(*db, "first_attempt", std::max(attempt, before.attempt) + kAttemptGap));
    RETURN_IF_ERROR(SetMeta(*db, "hold_after_restore", 1));
    RETURN_IF_ERROR(CheckRootOf(*db, artifact_root));
    if (!artifact_root.empty()) RETURN_IF_ERROR(CompareWithArtifacts(*db, artifact_root, report));
    RETURN_IF_ERROR(db->Execute("COMMIT"));
    RETURN_IF_ERROR(db->CheckIntegrity());
    RETURN_IF_ERROR(db->Execute("PRAGMA wal_checkpoint(TRUNCATE)"));  // all of it in one file
    ASSIGN_OR_RETURN(report.restored, Summarize(*db));
  }
  RETURN_IF_ERROR(SyncFile(path));
  before_replace.Pass();
  const std::string former = absl::StrCat(
      target, ".before-", absl::FormatTime("%Y%m%dT%H%M%SZ", now, absl::UTCTimeZone()));
  if (Exists(target)) report.replaced = former;
  RETURN_IF_ERROR(ReplaceDatabase(folder, path, former));
  return report;
}

// ---- salvage ----

// Copies the rows of `table` that can be read, from both ends towards the damage.
absl::StatusOr<bool> SalvageTable(Database& from, Database& to, const std::string& table,
                                  int64_t& rows) {
  std::vector<std::string> columns;
  {
    ASSIGN_OR_RETURN(Query query, to.Prepare("SELECT name FROM pragma_table_info(?)"));
    query.Bind(table);
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) break;
      columns.push_back(query.TextAt(0));
    }
  }
  const std::string names = absl::StrJoin(columns, ", ");
  const std::string insert =
      absl::StrCat("INSERT OR IGNORE INTO ", table, " (", names, ") VALUES (",
                   absl::StrJoin(std::vector<std::string>(columns.size(), "?"), ", "), ")");
  bool damaged = false;
  for (const char* direction : {"ASC", "DESC"}) {
    auto read = from.Prepare(
        absl::StrCat("SELECT ", names, " FROM ", table, " ORDER BY rowid ", direction));
    if (!read.ok()) return true;
    while (true) {
      const absl::StatusOr<bool> row = read->Step();
      if (!row.ok()) {
        damaged = true;
        break;
      }
      if (!*row) return damaged;  // all of it
      ASSIGN_OR_RETURN(Query write, to.Prepare(insert));
      for (size_t i = 0; i < columns.size(); ++i) {
        write.Copy(static_cast<int>(i) + 1, *read, static_cast<int>(i));
      }
      ASSIGN_OR_RETURN(const int64_t changed, write.Run());
      rows += changed;
    }
  }
  return damaged;
}

// Rows whose parents could not be read say nothing any more.
absl::Status DropOrphans(Database& db) {
  RETURN_IF_ERROR(db.Execute(
      "DELETE FROM attempts WHERE job NOT IN (SELECT name FROM jobs);"
      "DELETE FROM placements WHERE NOT EXISTS (SELECT 1 FROM attempts a WHERE a.job = "
      "placements.job AND a.number = placements.attempt);"
      "DELETE FROM step_metrics WHERE NOT EXISTS (SELECT 1 FROM attempts a WHERE a.job = "
      "step_metrics.job AND a.number = step_metrics.attempt);"
      "DELETE FROM reservations WHERE NOT EXISTS (SELECT 1 FROM attempts a WHERE a.job = "
      "reservations.job AND a.number = reservations.attempt AND a.state < 6);"));
  for (const char* table : {"events", "idempotency", "checkpoints", "conditions"}) {
    ASSIGN_OR_RETURN(Query there,
                     db.Prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?"));
    ASSIGN_OR_RETURN(const bool exists, there.Bind(table).Step());
    if (!exists) continue;
    RETURN_IF_ERROR(db.Execute(
        absl::StrCat("DELETE FROM ", table, " WHERE job NOT IN (SELECT name FROM jobs)")));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DatabaseSummary> BackUp(const std::string& folder, const std::string& to) {
  const std::string source = DatabasePath(folder);
  if (!Exists(source)) return absl::NotFoundError(absl::StrCat("back up ", source, ": not there"));
  const std::string temporary = absl::StrCat(to, ".tmp.", ::getpid());
  RemoveDatabase(temporary);
  const auto copy = [&]() -> absl::StatusOr<DatabaseSummary> {
    ASSIGN_OR_RETURN(const auto reader, Database::Open(source, OpenMode::kReadOnly));
    RETURN_IF_ERROR(reader->CopyTo(temporary));
    ASSIGN_OR_RETURN(const auto made, Database::Open(temporary, OpenMode::kReadWrite));
    RETURN_IF_ERROR(made->CheckIntegrity());
    RETURN_IF_ERROR(made->Execute("PRAGMA journal_mode=DELETE"));  // one file, whole in itself
    return Summarize(*made);
  };
  absl::StatusOr<DatabaseSummary> summary = copy();
  absl::Status status = summary.status();
  if (status.ok()) status = SyncFile(temporary);
  if (status.ok()) status = before_rename.Check();
  if (status.ok() && ::rename(temporary.c_str(), to.c_str()) != 0) {
    status = ErrnoStatus("rename to", to, errno);
  }
  if (!status.ok()) {
    RemoveDatabase(temporary);
    return status;
  }
  RETURN_IF_ERROR(SyncFolder(FolderOf(to)));
  return summary;
}

absl::StatusOr<DatabaseSummary> CheckState(const std::string& folder) {
  const std::string path = DatabasePath(folder);
  if (!Exists(path)) return absl::NotFoundError(absl::StrCat("check ", path, ": not there"));
  ASSIGN_OR_RETURN(const auto db, Database::Open(path, OpenMode::kReadOnly));
  RETURN_IF_ERROR(db->CheckIntegrity());
  return Summarize(*db);
}

absl::StatusOr<RestoreReport> Restore(const std::string& folder, const std::string& from,
                                      const std::string& artifact_root, absl::Time now) {
  if (!Exists(from)) return absl::NotFoundError(absl::StrCat("restore ", from, ": not there"));
  RETURN_IF_ERROR(MakeFolders(folder));
  RETURN_IF_ERROR(CheckLocalFileSystem(folder));
  ASSIGN_OR_RETURN(const UniqueFd lock, LockStateFolder(folder));
  RETURN_IF_ERROR(FinishReplacement(folder));
  const std::string temporary = DatabasePath(folder) + ".restoring";
  RemoveDatabase(temporary);
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(from));
  RETURN_IF_ERROR(ReplaceFile(temporary, bytes));
  {
    ASSIGN_OR_RETURN(const auto db, Database::Open(temporary, OpenMode::kReadWrite));
    RETURN_IF_ERROR(db->CheckIntegrity());
  }
  absl::StatusOr<RestoreReport> report = PutInPlace(folder, temporary, artifact_root, now);
  if (!report.ok()) RemoveDatabase(temporary);
  return report;
}

absl::StatusOr<RecoverReport> Recover(const std::string& folder, const std::string& artifact_root,
                                      absl::Time now) {
  const std::string path = DatabasePath(folder);
  ASSIGN_OR_RETURN(const UniqueFd lock, LockStateFolder(folder));
  RETURN_IF_ERROR(FinishReplacement(folder));
  if (!Exists(path)) return absl::NotFoundError(absl::StrCat("recover ", path, ": not there"));
  const std::string temporary = path + ".recovering";
  RemoveDatabase(temporary);
  RecoverReport report;
  {
    ASSIGN_OR_RETURN(auto to, Database::Open(temporary, OpenMode::kReadWrite));
    RETURN_IF_ERROR(
        Migrate(*to, absl::StrFormat("%016x%016x", absl::ToUnixNanos(now), ::getpid())));
    ASSIGN_OR_RETURN(auto from, Database::Open(path, OpenMode::kReadOnly));
    std::vector<std::string> tables;
    {
      ASSIGN_OR_RETURN(Query query,
                       to->Prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name "
                                   "NOT LIKE 'sqlite_%'"));
      while (true) {
        ASSIGN_OR_RETURN(const bool row, query.Step());
        if (!row) break;
        tables.push_back(query.TextAt(0));
      }
    }
    RETURN_IF_ERROR(to->Execute("PRAGMA foreign_keys=OFF; DELETE FROM meta; BEGIN IMMEDIATE"));
    for (const std::string& table : tables) {
      ASSIGN_OR_RETURN(const bool damaged, SalvageTable(*from, *to, table, report.rows));
      if (damaged) report.damaged_tables.push_back(table);
    }
    RETURN_IF_ERROR(DropOrphans(*to));
    RETURN_IF_ERROR(to->Execute("COMMIT; PRAGMA foreign_keys=ON"));
  }
  ASSIGN_OR_RETURN(report.restored, PutInPlace(folder, temporary, artifact_root, now));
  return report;
}

}  // namespace switchyard
