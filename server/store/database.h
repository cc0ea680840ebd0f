// A thin layer over SQLite with Status. Included by store/*.cc only: sqlite3.h stays in
// database.cc.
#ifndef SWITCHYARD_SERVER_STORE_DATABASE_H_
#define SWITCHYARD_SERVER_STORE_DATABASE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"

struct sqlite3;
struct sqlite3_stmt;

namespace switchyard {

class Database;

// A prepared statement with its parameters, borrowed from the connection's cache until destroyed.
// Parameters count from 1, columns from 0. Not thread-safe.
class Query {
 public:
  Query(Query&& other) noexcept;
  Query& operator=(Query&&) = delete;
  ~Query();

  Query& Int(int index, int64_t value);
  Query& Real(int index, double value);
  Query& Text(int index, absl::string_view value);
  Query& Blob(int index, absl::string_view value);
  Query& Null(int index);
  // Whatever `from` has in `column` of its present row, with its type.
  Query& Copy(int index, const Query& from, int column);
  // Parameters in the order of the arguments: integers, enums, doubles, strings.
  template <typename... Args>
  Query& Bind(const Args&... args) {
    int index = 0;
    (BindOne(++index, args), ...);
    return *this;
  }

  // True: a row is there. False: the end.
  absl::StatusOr<bool> Step();
  // Runs a statement that returns no rows; answers the number of rows changed.
  absl::StatusOr<int64_t> Run();

  int64_t IntAt(int column) const;
  double RealAt(int column) const;
  std::string TextAt(int column) const;  // also of blobs
  bool IsNull(int column) const;

 private:
  friend class Database;
  Query(Database* db, sqlite3_stmt* statement) : db_(db), statement_(statement) {}

  void BindOne(int index, int64_t value) { Int(index, value); }
  void BindOne(int index, int32_t value) { Int(index, value); }
  void BindOne(int index, uint32_t value) { Int(index, value); }
  void BindOne(int index, bool value) { Int(index, value ? 1 : 0); }
  void BindOne(int index, double value) { Real(index, value); }
  void BindOne(int index, absl::string_view value) { Text(index, value); }
  void BindOne(int index, const std::string& value) { Text(index, value); }
  void BindOne(int index, const char* value) { Text(index, value); }
  template <typename E>
  requires std::is_enum_v<E>
  void BindOne(int index, E value) { Int(index, static_cast<int64_t>(value)); }

  Database* db_;
  sqlite3_stmt* statement_;
};

enum class OpenMode { kReadWrite, kReadOnly };

// One connection; used by one thread at a time.
class Database {
 public:
  // Opens and sets the pragmas of the coordinator's database, then reads them back.
  // A reader never checkpoints, not even when it is closed: Debian 12's SQLite can corrupt a
  // database when a checkpoint races a commit, so that only the writer may do either.
  // Errors: Internal with the pragma that did not take; DataLoss for a damaged file; else as SQLite
  // says.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path, OpenMode mode);
  ~Database();

  absl::StatusOr<Query> Prepare(absl::string_view sql);
  // One or more statements without parameters or rows.
  absl::Status Execute(const std::string& sql);
  absl::StatusOr<int64_t> QueryInt(absl::string_view sql);
  absl::StatusOr<std::string> QueryText(absl::string_view sql);
  int64_t last_insert_rowid() const;

  // What is wrong with the file, as `PRAGMA quick_check` says. OK: nothing.
  absl::Status QuickCheck();
  // The same as `PRAGMA integrity_check` and `foreign_key_check` say: slower, and whole. Errors:
  // DataLoss with the first three findings.
  absl::Status CheckIntegrity();
  // Copies all of it, as of one moment, to the file `path`, which nobody uses. Delays no writer.
  absl::Status CopyTo(const std::string& path);
  // Moves the WAL's content into the database file.
  absl::Status Checkpoint();

  // Called before every statement and commit; an error is that statement's result. Only tests set
  // it: to copy the files at that point, or to let the disk or the process fail there.
  absl::Status (*statement_hook)(void* arg, absl::string_view sql) = nullptr;
  void* statement_hook_arg = nullptr;

 private:
  friend class Query;
  explicit Database(sqlite3* db) : db_(db) {}
  absl::Status Error(int rc, absl::string_view what) const;

  sqlite3* db_;
  std::unordered_map<std::string, sqlite3_stmt*> cache_;
};

// Versions 3.7.0 to 3.51.2 can corrupt a WAL database when two connections checkpoint and commit at
// once; see Database::Open for how that is avoided.
bool SqliteHasWalResetBug();

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_DATABASE_H_
