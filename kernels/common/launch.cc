#include "kernels/common/launch.h"

#include <array>
#include <atomic>

namespace switchyard::kernels {

int NumSms() {
  static std::array<std::atomic<int>, 64> cached{};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device < 0 || device >= 64) return 1;
  int count = cached[device].load(std::memory_order_relaxed);
  if (count == 0) {
    if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
      return 1;
    cached[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

}  // namespace switchyard::kernels
