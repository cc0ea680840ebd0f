#include "worker/shim/attempt_files.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

namespace switchyard {
namespace internal {

int MapFile(const std::string& path, size_t size, bool create, void** data) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0), 0600);
  if (fd < 0) return errno;
  int error = 0;
  struct stat info;
  if (::fstat(fd, &info) != 0) error = errno;
  if (error == 0 && static_cast<size_t>(info.st_size) < size) {
    // A write to a mapped page without a block would end the process when the disk is full.
    error = create ? ::posix_fallocate(fd, 0, static_cast<off_t>(size)) : EINVAL;
  }
  if (error == 0) {
    void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) {
      error = errno;
    } else {
      *data = mapped;
    }
  }
  ::close(fd);
  return error;
}

void UnmapFile(void* data, size_t size) { ::munmap(data, size); }
void SyncMapping(void* data, size_t size) { ::msync(data, size, MS_SYNC); }

}  // namespace internal

namespace {

// sockaddr_un holds 107 bytes; by way of the folder's descriptor a path of any length fits.
template <typename Use>
int WithControl(const std::string& folder, Use use) {
  const int folder_fd = ::open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (folder_fd < 0) return -1;
  int fd = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path =
      "/proc/self/fd/" + std::to_string(folder_fd) + "/" + std::string(kControlSocket);
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  if (fd >= 0 && !use(fd, address)) {
    const int error = errno;
    ::close(fd);
    fd = -1;
    errno = error;
  }
  const int error = errno;
  ::close(folder_fd);
  errno = error;
  return fd;
}

}  // namespace

std::string RankFile(const std::string& folder, int rank, const char* suffix) {
  return folder + "/rank-" + std::to_string(rank) + "." + suffix;
}

int ListenControl(const std::string& folder) {
  return WithControl(folder, [&folder](int fd, const sockaddr_un& address) {
    ::unlink((folder + "/" + kControlSocket).c_str());
    return ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 &&
           ::listen(fd, 4) == 0;
  });
}

int ConnectControl(const std::string& folder) {
  return WithControl(folder, [](int fd, const sockaddr_un& address) {
    return ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  });
}

int LockAttempt(const std::string& folder) {
  const int fd = ::open((folder + "/" + kLockFile).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return -1;
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  // An open-file-description lock: ours alone, whatever else this process opens and closes.
  if (::fcntl(fd, F_OFD_SETLK, &lock) == 0) return fd;
  const int error = errno;
  ::close(fd);
  errno = error == EACCES ? EAGAIN : error;
  return -1;
}

}  // namespace switchyard
