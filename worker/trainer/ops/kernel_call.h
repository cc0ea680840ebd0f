// For the files foo_cuda.cc of this folder and others that launch our kernels: tensors as kernels
// want them. Only in builds with SY_CUDA.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_KERNEL_CALL_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_KERNEL_CALL_H_

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/common/dtype.h"

namespace switchyard::ops {

inline cudaStream_t CurrentStream() { return c10::cuda::getCurrentCUDAStream().stream(); }

inline void CheckKernel(cudaError_t error, const char* what) {
  TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

// The first element; null for an undefined tensor. Rows may be apart (the kernel is told the
// stride), elements of a row not.
inline kernels::Bf16* Bf16Of(const at::Tensor& tensor) {
  if (!tensor.defined()) return nullptr;
  TORCH_CHECK(tensor.scalar_type() == at::kBFloat16 && tensor.is_cuda(), "bug: expected bf16 on ",
              "CUDA, got ", tensor.scalar_type(), " on ", tensor.device());
  return reinterpret_cast<kernels::Bf16*>(tensor.data_ptr());
}
inline float* FloatOf(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<float>() : nullptr;
}
inline int32_t* IntOf(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<int32_t>() : nullptr;
}

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_KERNEL_CALL_H_
