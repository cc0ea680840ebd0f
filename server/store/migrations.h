// Numbered schema steps, applied on open, one transaction each, with PRAGMA user_version inside it.
#ifndef SWITCHYARD_SERVER_STORE_MIGRATIONS_H_
#define SWITCHYARD_SERVER_STORE_MIGRATIONS_H_

#include "absl/status/status.h"
#include "server/store/database.h"

namespace switchyard {

// Brings `db` to the schema of this binary. A new database gets its uuid from `uuid`.
// Errors: FailedPrecondition: the file is of another program, or newer than this binary (both
// numbers); it is left as it is.
absl::Status Migrate(Database& db, absl::string_view uuid);

int CurrentSchemaVersion();

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_MIGRATIONS_H_
