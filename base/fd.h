// File descriptors, pipes and whole files, with errors that name the path and the reason.
#ifndef SWITCHYARD_BASE_FD_H_
#define SWITCHYARD_BASE_FD_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// Owns one descriptor; closes it.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  ~UniqueFd() { Reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    Reset(std::exchange(other.fd_, -1));
    return *this;
  }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }
  void Reset(int fd = -1);

 private:
  int fd_ = -1;
};

struct Pipe {
  UniqueFd read;
  UniqueFd write;
};
// Both ends close-on-exec.
absl::StatusOr<Pipe> MakePipe();

// "open /x/y: No such file or directory", with the code that fits errno (NotFound,
// PermissionDenied, ResourceExhausted for a full disk, else Unavailable).
absl::Status ErrnoStatus(absl::string_view what, absl::string_view path, int error);

// The whole file. Errors: as ErrnoStatus.
absl::StatusOr<std::string> ReadFile(const std::string& path);

// Writes all bytes, through EINTR and short writes.
absl::Status WriteAll(int fd, absl::string_view data, absl::string_view path);

// Replaces `path` atomically and durably: temporary file beside it, fsync, rename, fsync of the
// folder. A reader sees the old or the new content, whole.
absl::Status ReplaceFile(const std::string& path, absl::string_view data);

// Makes earlier creations, renames and removals in `folder` durable.
absl::Status SyncFolder(const std::string& folder);

// mkdir -p. An existing folder is no error.
absl::Status MakeFolders(const std::string& path);

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_FD_H_
