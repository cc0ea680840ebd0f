#include "server/store/database.h"

#include <sqlite3.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

absl::StatusCode CodeOf(int rc) {
  switch (rc & 0xff) {
    case SQLITE_CONSTRAINT:
      return absl::StatusCode::kFailedPrecondition;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_NOMEM:  // nothing is wrong with the data: to be asked again
      return absl::StatusCode::kUnavailable;
    case SQLITE_FULL:
      return absl::StatusCode::kResourceExhausted;
    case SQLITE_IOERR:
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::StatusCode::kDataLoss;
    case SQLITE_CANTOPEN:
      return absl::StatusCode::kNotFound;
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return absl::StatusCode::kPermissionDenied;
    default:
      return absl::StatusCode::kInternal;
  }
}

struct Pragma {
  const char* name;
  const char* value;     // as set
  const char* readback;  // as read; null: not readable
};
constexpr Pragma kPragmas[] = {
    {"busy_timeout", "5000", "5000"}, {"foreign_keys", "ON", "1"},
    {"trusted_schema", "OFF", "0"},   {"cell_size_check", "ON", "1"},
    {"mmap_size", "0", "0"},          {"temp_store", "MEMORY", "2"},
    {"synchronous", "FULL", "2"},     {"recursive_triggers", "ON", "1"},
};

}  // namespace

Query::Query(Query&& other) noexcept
    : db_(other.db_), statement_(std::exchange(other.statement_, nullptr)) {}

Query::~Query() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

Query& Query::Int(int index, int64_t value) {
  SY_CHECK(sqlite3_bind_int64(statement_, index, value) == SQLITE_OK) << sqlite3_sql(statement_);
  return *this;
}
Query& Query::Real(int index, double value) {
  SY_CHECK(sqlite3_bind_double(statement_, index, value) == SQLITE_OK) << sqlite3_sql(statement_);
  return *this;
}
Query& Query::Text(int index, absl::string_view value) {
  // A null pointer would bind NULL.
  const char* data = value.empty() ? "" : value.data();
  SY_CHECK(sqlite3_bind_text(statement_, index, data, static_cast<int>(value.size()),
                             SQLITE_TRANSIENT) == SQLITE_OK)
      << sqlite3_sql(statement_);
  return *this;
}
Query& Query::Blob(int index, absl::string_view value) {
  const char* data = value.empty() ? "" : value.data();
  SY_CHECK(sqlite3_bind_blob(statement_, index, data, static_cast<int>(value.size()),
                             SQLITE_TRANSIENT) == SQLITE_OK)
      << sqlite3_sql(statement_);
  return *this;
}
Query& Query::Null(int index) {
  SY_CHECK(sqlite3_bind_null(statement_, index) == SQLITE_OK) << sqlite3_sql(statement_);
  return *this;
}

Query& Query::Copy(int index, const Query& from, int column) {
  SY_CHECK(sqlite3_bind_value(statement_, index, sqlite3_column_value(from.statement_, column)) ==
           SQLITE_OK)
      << sqlite3_sql(statement_);
  return *this;
}

absl::StatusOr<bool> Query::Step() {
  if (db_->statement_hook != nullptr) {
    RETURN_IF_ERROR(db_->statement_hook(db_->statement_hook_arg, sqlite3_sql(statement_)));
  }
  const int rc = sqlite3_step(statement_);
  if (rc == SQLITE_ROW) return true;
  if (rc == SQLITE_DONE) return false;
  return db_->Error(rc, sqlite3_sql(statement_));
}

absl::StatusOr<int64_t> Query::Run() {
  ASSIGN_OR_RETURN(const bool row, Step());
  SY_CHECK(!row) << "a statement with rows was run: " << sqlite3_sql(statement_);
  return sqlite3_changes64(db_->db_);
}

int64_t Query::IntAt(int column) const { return sqlite3_column_int64(statement_, column); }
double Query::RealAt(int column) const { return sqlite3_column_double(statement_, column); }
std::string Query::TextAt(int column) const {
  const void* data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return size == 0 ? std::string() : std::string(static_cast<const char*>(data), size);
}
bool Query::IsNull(int column) const {
  return sqlite3_column_type(statement_, column) == SQLITE_NULL;
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& path, OpenMode mode) {
  const int flags = mode == OpenMode::kReadWrite ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE
                                                 : SQLITE_OPEN_READONLY;
  sqlite3* handle = nullptr;
  const int rc = sqlite3_open_v2(path.c_str(), &handle,
                                 flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
  std::unique_ptr<Database> db(new Database(handle));
  if (rc != SQLITE_OK) return db->Error(rc, absl::StrCat("open ", path));
  if (mode == OpenMode::kReadOnly) {
    sqlite3_db_config(handle, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
    RETURN_IF_ERROR(db->Execute("PRAGMA wal_autocheckpoint=0"));
  } else {
    RETURN_IF_ERROR(db->Execute("PRAGMA journal_mode=WAL"));
    RETURN_IF_ERROR(db->Execute("PRAGMA journal_size_limit=67108864"));
  }
  ASSIGN_OR_RETURN(const std::string journal, db->QueryText("PRAGMA journal_mode"));
  if (journal != "wal") {
    return absl::InternalError(absl::StrCat("open ", path, ": journal_mode is ", journal,
                                            ", not wal (a network file system?)"));
  }
  for (const Pragma& pragma : kPragmas) {
    RETURN_IF_ERROR(db->Execute(absl::StrCat("PRAGMA ", pragma.name, "=", pragma.value)));
    ASSIGN_OR_RETURN(const std::string got, db->QueryText(absl::StrCat("PRAGMA ", pragma.name)));
    if (got != pragma.readback) {
      return absl::InternalError(absl::StrCat("open ", path, ": pragma ", pragma.name, " is ", got,
                                              " after setting ", pragma.value));
    }
  }
  return db;
}

Database::~Database() {
  for (auto& [sql, statement] : cache_) sqlite3_finalize(statement);
  sqlite3_close(db_);
}

absl::Status Database::Error(int rc, absl::string_view what) const {
  return absl::Status(CodeOf(rc), absl::StrCat("database: ", sqlite3_errmsg(db_), " (",
                                               sqlite3_errstr(rc), "): ", what));
}

absl::StatusOr<Query> Database::Prepare(absl::string_view sql) {
  std::string key(sql);
  auto it = cache_.find(key);
  if (it != cache_.end() && sqlite3_stmt_busy(it->second) == 0) return Query(this, it->second);
  SY_CHECK(it == cache_.end()) << "the statement is in use: " << key;
  sqlite3_stmt* statement = nullptr;
  const int rc = sqlite3_prepare_v3(db_, sql.data(), static_cast<int>(sql.size()),
                                    SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  if (rc != SQLITE_OK) return Error(rc, sql);
  cache_.emplace(std::move(key), statement);
  return Query(this, statement);
}

absl::Status Database::Execute(const std::string& sql) {
  if (statement_hook != nullptr) RETURN_IF_ERROR(statement_hook(statement_hook_arg, sql));
  const int rc = sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr);
  return rc == SQLITE_OK ? absl::OkStatus() : Error(rc, sql);
}

absl::StatusOr<int64_t> Database::QueryInt(absl::string_view sql) {
  ASSIGN_OR_RETURN(Query query, Prepare(sql));
  ASSIGN_OR_RETURN(const bool row, query.Step());
  if (!row) return absl::NotFoundError(absl::StrCat("database: no row: ", sql));
  return query.IntAt(0);
}

absl::StatusOr<std::string> Database::QueryText(absl::string_view sql) {
  ASSIGN_OR_RETURN(Query query, Prepare(sql));
  ASSIGN_OR_RETURN(const bool row, query.Step());
  if (!row) return absl::NotFoundError(absl::StrCat("database: no row: ", sql));
  return query.TextAt(0);
}

int64_t Database::last_insert_rowid() const { return sqlite3_last_insert_rowid(db_); }

absl::Status Database::QuickCheck() {
  ASSIGN_OR_RETURN(const std::string result, QueryText("PRAGMA quick_check(1)"));
  if (result == "ok") return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("database: quick_check: ", result));
}

absl::Status Database::CheckIntegrity() {
  std::vector<std::string> findings;
  const auto note = [&](std::string text) {
    if (findings.size() < 3) findings.push_back(std::move(text));
  };
  {
    ASSIGN_OR_RETURN(Query query, Prepare("PRAGMA integrity_check(3)"));
    while (true) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) break;
      if (query.TextAt(0) != "ok") note(query.TextAt(0));
    }
  }
  ASSIGN_OR_RETURN(Query query, Prepare("PRAGMA foreign_key_check"));
  while (true) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) break;
    note(absl::StrCat("row ", query.IntAt(1), " of ", query.TextAt(0), " has no parent in ",
                      query.TextAt(2)));
  }
  if (findings.empty()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("database: ", absl::StrJoin(findings, "; ")));
}

absl::Status Database::CopyTo(const std::string& path) {
  sqlite3* target = nullptr;
  int rc =
      sqlite3_open_v2(path.c_str(), &target,
                      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  const Database owner(target);  // closes it
  if (rc != SQLITE_OK) return owner.Error(rc, absl::StrCat("open ", path));
  sqlite3_backup* const backup = sqlite3_backup_init(target, "main", db_, "main");
  if (backup == nullptr)
    return owner.Error(sqlite3_errcode(target), absl::StrCat("copy to ", path));
  // In one step: one read transaction, so that it is one moment and never begins again.
  rc = sqlite3_backup_step(backup, -1);
  const int finished = sqlite3_backup_finish(backup);
  if (rc == SQLITE_DONE && finished == SQLITE_OK) return absl::OkStatus();
  return owner.Error(rc == SQLITE_DONE ? finished : rc, absl::StrCat("copy to ", path));
}

absl::Status Database::Checkpoint() {
  const int rc =
      sqlite3_wal_checkpoint_v2(db_, nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
  return rc == SQLITE_OK ? absl::OkStatus() : Error(rc, "wal_checkpoint");
}

bool SqliteHasWalResetBug() {
  const int version = sqlite3_libversion_number();
  // Fixed in 3.51.3 and in the backports 3.44.6 and 3.50.7.
  if (version >= 3051003 || version < 3007000) return false;
  return !(version >= 3044006 && version < 3045000) && !(version >= 3050007 && version < 3051000);
}

}  // namespace switchyard
