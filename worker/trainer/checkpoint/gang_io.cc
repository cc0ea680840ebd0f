#include "worker/trainer/checkpoint/gang_io.h"

#include <ATen/ATen.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/trainer/checkpoint/manifest.h"
#include "worker/trainer/checkpoint/or_throw.h"

namespace switchyard {

OpenFiles::OpenFiles(std::string folder, std::vector<std::string> names, int flags)
    : folder_(std::move(folder)), names_(std::move(names)), flags_(flags), fds_(names_.size()) {}

absl::Status OpenFiles::Open(int file) {
  if (fds_[file].valid()) return absl::OkStatus();
  const std::string path = absl::StrCat(folder_, "/", names_[file]);
  fds_[file].Reset(::open(path.c_str(), flags_ | O_CLOEXEC));
  if (!fds_[file].valid()) return ErrnoStatus("open", path, errno);
  return absl::OkStatus();
}

absl::Status OpenFiles::ReadAt(int file, uint64_t offset, void* data, size_t bytes) {
  RETURN_IF_ERROR(Open(file));
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::pread(fds_[file].get(), static_cast<char*>(data) + done, bytes - done,
                              static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    const std::string path = absl::StrCat(folder_, "/", names_[file]);
    if (n < 0) return ErrnoStatus("read", path, errno);
    if (n == 0) {
      return absl::DataLossError(absl::StrCat("read ", path, ": ends at byte ", offset + done,
                                              ", needed up to ", offset + bytes,
                                              ": shortened while it was read"));
    }
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status OpenFiles::WriteAt(int file, uint64_t offset, const void* data, size_t bytes) {
  RETURN_IF_ERROR(Open(file));
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::pwrite(fds_[file].get(), static_cast<const char*>(data) + done,
                               bytes - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("write", absl::StrCat(folder_, "/", names_[file]), errno);
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status OpenFiles::Sync() {
  for (size_t f = 0; f < fds_.size(); ++f) {
    if (fds_[f].valid() && ::fsync(fds_[f].get()) != 0) {
      return ErrnoStatus("fsync", absl::StrCat(folder_, "/", names_[f]), errno);
    }
  }
  return absl::OkStatus();
}

void AgreeOk(Comm& world, const absl::Status& mine, absl::string_view what) {
  at::Tensor failed = at::full({1}, mine.ok() ? 0 : 1, at::kLong);
  world.AllReduceMax(failed);
  OrThrow(mine);
  if (failed.item<int64_t>() != 0) {
    throw StatusError(absl::AbortedError(absl::StrCat(what, ": another rank failed")));
  }
}

std::vector<uint32_t> GangCrc32c(Comm& world, const std::string& folder,
                                 const std::vector<std::string>& names) {
  at::Tensor crcs = at::zeros({static_cast<int64_t>(names.size())}, at::kLong);
  absl::Status status;
  for (size_t i = world.rank(); i < names.size() && status.ok(); i += world.size()) {
    const absl::StatusOr<uint32_t> crc = FileCrc32c(absl::StrCat(folder, "/", names[i]));
    status = crc.status();
    if (crc.ok()) crcs[static_cast<int64_t>(i)] = static_cast<int64_t>(*crc);
  }
  AgreeOk(world, status, absl::StrCat("checksums of ", folder));
  world.AllReduceSum(crcs);
  std::vector<uint32_t> result;
  for (size_t i = 0; i < names.size(); ++i) {
    result.push_back(static_cast<uint32_t>(crcs[static_cast<int64_t>(i)].item<int64_t>()));
  }
  return result;
}

}  // namespace switchyard
