// The coordinator's state folder: on a local disk, used by one switchyardd at a time, with some
// space in reserve.
#ifndef SWITCHYARD_SERVER_STORE_STATE_FOLDER_H_
#define SWITCHYARD_SERVER_STORE_STATE_FOLDER_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fd.h"

namespace switchyard {

std::string DatabasePath(const std::string& folder);

// An open-file-description lock on `folder`/lock: held by this open file, so that neither a fork
// nor another open of the same file in this process can lose it, as POSIX locks would. Errors:
// FailedPrecondition: another switchyardd uses the folder.
absl::StatusOr<UniqueFd> LockStateFolder(const std::string& folder);

// The name of a network or user-space file system by statfs(2)'s f_type; null: taken for a local
// one.
const char* NetworkFileSystem(int64_t type);
// A write-ahead log needs shared memory and fsync that mean what they say.
// Errors: FailedPrecondition on a network file system.
absl::Status CheckLocalFileSystem(const std::string& folder);

// A file that takes up space while there is some, and gives it back when the disk is full, so that
// what already runs can still be recorded. Not thread-safe.
class Ballast {
 public:
  // `size_bytes`: at most an eighth of the file system is taken; 0: none.
  Ballast(const std::string& folder, int64_t size_bytes);

  // Makes the file, or makes it whole, if that leaves at least as much space free again. False: the
  // disk is too full for that; the file is not there then.
  bool Fill();
  // Frees the space. False: there was none to free.
  bool Free();

 private:
  const std::string path_;
  const int64_t size_bytes_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_STATE_FOLDER_H_
