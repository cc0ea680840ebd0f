#include <nccl_device.h>

#include "worker/trainer/parallel/nccl_window_pointers.h"

namespace switchyard {
namespace {

__global__ void PointersKernel(ncclWindow_t window, int ranks, void** pointers) {
  for (int r = 0; r < ranks; ++r) pointers[r] = ncclGetLsaPointer(window, 0, r);
}

}  // namespace

cudaError_t NcclWindowPointers(ncclWindow_t window, int ranks, void** pointers,
                               cudaStream_t stream) {
  PointersKernel<<<1, 1, 0, stream>>>(window, ranks, pointers);
  return cudaGetLastError();
}

}  // namespace switchyard
