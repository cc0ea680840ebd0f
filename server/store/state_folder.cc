#include "server/store/state_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/failpoint.h"

namespace switchyard {
namespace {

Failpoint before_free("ballast.before_free", FailpointKind::kEvent);

struct Type {
  int64_t number;  // linux/magic.h; those that are missing there are from the file systems' sources
  const char* name;
};
constexpr Type kNetworkTypes[] = {
    {0x6969, "NFS"},       {0x517b, "SMB"},        {0xfe534d42, "SMB2"},  {0xff534d42, "CIFS"},
    {0x5346414f, "AFS"},   {0x6b414653, "AFS"},    {0x73757245, "Coda"},  {0x01021997, "9P"},
    {0x00c36400, "Ceph"},  {0x0bd00bd0, "Lustre"}, {0x47504653, "GPFS"},  {0x65735546, "FUSE"},
    {0x7461636f, "OCFS2"}, {0x01161970, "GFS2"},   {0x20030528, "PVFS2"}, {0x013111a8, "IBRIX"},
    {0xaad7aaea, "PanFS"},
};

int64_t FreeBytes(const std::string& path) {
  struct statfs info;
  if (::statfs(path.c_str(), &info) != 0) return -1;
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_bsize);
}

// At most an eighth of the file system.
int64_t CapSize(const std::string& folder, int64_t size_bytes) {
  struct statfs info;
  if (::statfs(folder.c_str(), &info) != 0) return size_bytes;
  return std::min(size_bytes,
                  static_cast<int64_t>(info.f_blocks) * static_cast<int64_t>(info.f_bsize) / 8);
}

std::string FolderOf(const std::string& path) { return path.substr(0, path.rfind('/')); }

}  // namespace

std::string DatabasePath(const std::string& folder) { return folder + "/switchyard.db"; }

absl::StatusOr<UniqueFd> LockStateFolder(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/lock");
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoStatus("open", path, errno);
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (::fcntl(fd.get(), F_OFD_SETLK, &lock) != 0) {
    if (errno == EAGAIN || errno == EACCES) {
      return absl::FailedPreconditionError(
          absl::StrCat("lock ", path, ": another switchyardd uses this state folder"));
    }
    return ErrnoStatus("lock", path, errno);
  }
  return fd;
}

const char* NetworkFileSystem(int64_t type) {
  for (const Type& known : kNetworkTypes) {
    if (known.number == (type & 0xffffffff)) return known.name;
  }
  return nullptr;
}

absl::Status CheckLocalFileSystem(const std::string& folder) {
  struct statfs info;
  if (::statfs(folder.c_str(), &info) != 0) return ErrnoStatus("statfs", folder, errno);
  const char* const name = NetworkFileSystem(info.f_type);
  if (name == nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("open ", folder, ": it is on ", name,
                   ", and the database needs a local disk: its log is shared memory, and a commit "
                   "must be on the disk when fsync says so. Choose another --state-dir"));
}

Ballast::Ballast(const std::string& folder, int64_t size_bytes)
    : path_(folder + "/ballast"), size_bytes_(CapSize(folder, size_bytes)) {}

bool Ballast::Fill() {
  if (size_bytes_ == 0) return true;
  struct stat st;
  if (::stat(path_.c_str(), &st) == 0 && st.st_size == size_bytes_) return true;
  if (FreeBytes(FolderOf(path_)) < 2 * size_bytes_) return false;
  UniqueFd fd(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  if (fd.valid() && ::posix_fallocate(fd.get(), 0, size_bytes_) == 0 && ::fsync(fd.get()) == 0) {
    return true;
  }
  ::unlink(path_.c_str());
  return false;
}

bool Ballast::Free() {
  before_free.Pass();
  return ::unlink(path_.c_str()) == 0;
}

}  // namespace switchyard
