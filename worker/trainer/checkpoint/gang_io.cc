#include "worker/trainer/checkpoint/gang_io.h"

#include <ATen/ATen.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/trainer/checkpoint/manifest.h"
#include "worker/trainer/checkpoint/or_throw.h"

namespace switchyard {

OpenFiles::OpenFiles(std::string folder, std::vector<std::string> names)
    : folder_(std::move(folder)), names_(std::move(names)), fds_(names_.size()) {}

absl::Status OpenFiles::Open(int file) {
  if (fds_[file].valid()) return absl::OkStatus();
  const std::string path = absl::StrCat(folder_, "/", names_[file]);
  fds_[file].Reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
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

void AgreeOk(Comm& world, const absl::Status& mine, absl::string_view what) {
  at::Tensor failed = at::full({1}, mine.ok() ? 0 : 1, at::kLong);
  world.AllReduceMax(failed);
  OrThrow(mine);
  if (failed.item<int64_t>() != 0) {
    throw StatusError(absl::AbortedError(absl::StrCat(what, ": another rank failed")));
  }
}

std::vector<int64_t> GatherNumbers(Comm& world, const std::vector<int64_t>& mine) {
  at::Tensor counts = at::empty({world.size()}, at::kLong);
  world.AllGather(counts, at::tensor({static_cast<int64_t>(mine.size())}, at::kLong));
  const int64_t most = counts.max().item<int64_t>();
  at::Tensor padded = at::zeros({most}, at::kLong);
  std::copy(mine.begin(), mine.end(), padded.data_ptr<int64_t>());
  at::Tensor all = at::empty({world.size() * most}, at::kLong);
  world.AllGather(all, padded);
  std::vector<int64_t> numbers;
  for (int rank = 0; rank < world.size(); ++rank) {
    const int64_t* const first = all.data_ptr<int64_t>() + rank * most;
    numbers.insert(numbers.end(), first, first + counts.data_ptr<int64_t>()[rank]);
  }
  return numbers;
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
