// What every kernel header needs: the stream and error types, and integer helpers.
// Launchers validate, launch, and return; they never log, abort, allocate or synchronize. A
// launcher answers cudaErrorInvalidValue for a shape it does not support, else the launch error.
#ifndef SWITCHYARD_KERNELS_COMMON_LAUNCH_H_
#define SWITCHYARD_KERNELS_COMMON_LAUNCH_H_

#include <cstdint>

#if defined(SY_CUDA)
#include <cuda_runtime_api.h>
#else
// Without CUDA only the contracts and the references compile; nothing is launched.
enum cudaError : int;
using cudaError_t = cudaError;
using cudaStream_t = struct CUstream_st*;
#endif

namespace switchyard::kernels {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if defined(SY_CUDA)
// Streaming multiprocessors of the current device, asked once per device.
int NumSms();

inline bool IsAligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}
#endif

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_COMMON_LAUNCH_H_
