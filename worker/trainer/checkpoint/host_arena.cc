#include "worker/trainer/checkpoint/host_arena.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#if defined(SY_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace switchyard {
namespace {

absl::Status NoMemory(const char* what, int64_t bytes, const char* why) {
  return absl::ResourceExhaustedError(
      absl::StrCat(what, " ", bytes, " bytes of host memory: ", why));
}

}  // namespace

absl::StatusOr<std::unique_ptr<HostArena>> HostArena::Make(int64_t bytes, bool pinned) {
  bytes = std::max<int64_t>(bytes, 1);
  void* data = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return NoMemory("map", bytes, strerror(errno));
  std::unique_ptr<HostArena> arena(new HostArena(static_cast<char*>(data), bytes));
  // Huge pages make pinning some ten times faster; without them all works the same.
  ::madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  RETURN_IF_ERROR(arena->Populate(pinned));
  return arena;
}

absl::Status HostArena::Populate(bool pinned) {
  while (registered_bytes_ < bytes_) {
    char* const run = data_ + registered_bytes_;
    const int64_t bytes = std::min(kRunBytes, bytes_ - registered_bytes_);
    // Kernels before 5.14 do not know this advice: there pages come as they are touched.
    if (::madvise(run, static_cast<size_t>(bytes), MADV_POPULATE_WRITE) != 0 && errno != EINVAL) {
      return NoMemory("take", bytes, strerror(errno));
    }
#if defined(SY_CUDA)
    if (pinned) {
      const cudaError_t error =
          cudaHostRegister(run, static_cast<size_t>(bytes), cudaHostRegisterDefault);
      if (error != cudaSuccess) {
        cudaGetLastError();  // not sticky; the next caller must not find it
        return NoMemory("pin", bytes, cudaGetErrorString(error));
      }
    }
#else
    (void)pinned;
#endif
    registered_bytes_ += bytes;
    pinned_ = pinned;
  }
  return absl::OkStatus();
}

HostArena::~HostArena() {
#if defined(SY_CUDA)
  for (int64_t at = 0; pinned_ && at < registered_bytes_; at += kRunBytes) {
    cudaHostUnregister(data_ + at);
  }
#endif
  ::munmap(data_, static_cast<size_t>(bytes_));
}

}  // namespace switchyard
