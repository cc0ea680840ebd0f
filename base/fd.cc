#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "base/failpoint.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

Failpoint file_write("file.write", FailpointKind::kWrite);
Failpoint before_rename("file.before_rename", FailpointKind::kFallible);
Failpoint after_rename("file.after_rename", FailpointKind::kEvent);

}  // namespace

void UniqueFd::Reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus("pipe", "", errno);
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

absl::Status ErrnoStatus(absl::string_view what, absl::string_view path, int error) {
  const std::string message =
      absl::StrCat(what, path.empty() ? "" : " ", path, ": ", strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::ResourceExhaustedError(message);
    case EEXIST:
      return absl::AlreadyExistsError(message);
    case EISDIR:
    case EINVAL:
    case ENAMETOOLONG:
      return absl::InvalidArgumentError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open", path, errno);
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return ErrnoStatus("stat", path, errno);
  std::string data;
  data.reserve(static_cast<size_t>(st.st_size) + 1);
  char buffer[1 << 16];
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("read", path, errno);
    if (n == 0) return data;
    data.append(buffer, static_cast<size_t>(n));
  }
}

absl::Status WriteAll(int fd, absl::string_view data, absl::string_view path) {
  while (!data.empty()) {
    const ssize_t n = ::write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("write", path, errno);
    data.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status ReplaceFile(const std::string& path, absl::string_view data) {
  const std::string temporary = absl::StrCat(path, ".tmp.", ::getpid());
  {
    UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!fd.valid()) return ErrnoStatus("create", temporary, errno);
    bool torn = false;
    absl::Status status;
    if (const int error = file_write.ErrnoForWrite(&torn); error != 0) {
      status = ErrnoStatus("write", temporary, error);
    } else if (torn) {
      WriteAll(fd.get(), data.substr(0, data.size() / 2), temporary).IgnoreError();
      CrashNow();
    } else {
      status = WriteAll(fd.get(), data, temporary);
    }
    if (status.ok() && ::fsync(fd.get()) != 0) status = ErrnoStatus("fsync", temporary, errno);
    if (!status.ok()) {
      ::unlink(temporary.c_str());
      return status;
    }
  }
  if (const int error = before_rename.Errno(); error != 0) {
    ::unlink(temporary.c_str());
    return ErrnoStatus("rename to", path, error);
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return ErrnoStatus("rename to", path, errno);
  after_rename.Pass();
  const size_t slash = path.rfind('/');
  return SyncFolder(slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash));
}

absl::Status SyncFolder(const std::string& folder) {
  UniqueFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open", folder, errno);
  if (::fsync(fd.get()) != 0) return ErrnoStatus("fsync", folder, errno);
  return absl::OkStatus();
}

absl::Status MakeFolders(const std::string& path) {
  struct stat st;
  for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string part = path.substr(0, end);
    if (::mkdir(part.c_str(), 0755) != 0 && errno != EEXIST)
      return ErrnoStatus("mkdir", part, errno);
    if (end == std::string::npos) break;
  }
  if (::stat(path.c_str(), &st) != 0) return ErrnoStatus("stat", path, errno);
  if (!S_ISDIR(st.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("mkdir ", path, ": a file has this name"));
  }
  return absl::OkStatus();
}

}  // namespace switchyard
