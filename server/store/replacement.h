// Putting another file in the place of the database, so that a crash at any point leaves the one or
// the other, never none and never a half: a SQLite database is up to three files (the file, its
// log, the log's index), and a log that meets another database damages it.
//
// What is to happen is written down first (`switchyard.db.replacing`), then done; whoever opens the
// folder next finishes it. The folder's lock is held by all callers.
#ifndef SWITCHYARD_SERVER_STORE_REPLACEMENT_H_
#define SWITCHYARD_SERVER_STORE_REPLACEMENT_H_

#include <string>

#include "absl/status/status.h"

namespace switchyard {

// Makes `source`, a file of `folder` that is a whole database on the disk, the database of
// `folder`. The former one, if any, goes to `former`, another path there. Errors: those of files.
absl::Status ReplaceDatabase(const std::string& folder, const std::string& source,
                             const std::string& former);

// Finishes a replacement that a crash has interrupted. Errors: DataLoss: neither database is there;
// those of files.
absl::Status FinishReplacement(const std::string& folder);

// Before a database is made anew: FailedPrecondition when the folder has files of an earlier one,
// whose place a new, empty one must not take unseen.
absl::Status CheckNoneIsMissing(const std::string& folder);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_REPLACEMENT_H_
