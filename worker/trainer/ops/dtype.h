// The dtype in which an operation accumulates, and who computes it.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_DTYPE_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_DTYPE_H_

#include <ATen/core/Tensor.h>

namespace switchyard::ops {

// float64 for float64 (the tests' twins), else float32.
inline at::ScalarType AccumulateType(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}
inline at::ScalarType AccumulateType(const at::Tensor& tensor) {
  return AccumulateType(tensor.scalar_type());
}

// bf16 on CUDA is computed by our kernels (foo_cuda.cc), without waiting for the device. Everything
// else, float32 on CUDA too, is composed of ATen's operations in foo.cc: the specification. A
// composition may wait for the device.
inline bool HasKernels(const at::Tensor& tensor) {
  return tensor.is_cuda() && tensor.scalar_type() == at::kBFloat16;
}

// Puts a gradient into its buffer, in the buffer's dtype: `accumulate` adds, else the buffer's
// contents are undefined and are overwritten.
inline void PutGradient(const at::Tensor& gradient, bool accumulate, const at::Tensor& buffer) {
  if (accumulate) {
    buffer.add_(gradient);
  } else {
    buffer.copy_(gradient);
  }
}

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_DTYPE_H_
