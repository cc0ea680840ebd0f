// The dtype in which an operation accumulates.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_DTYPE_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_DTYPE_H_

#include <ATen/core/Tensor.h>

namespace switchyard::ops {

// float64 for float64 (the tests' twins), else float32. Gradient buffers have this dtype too.
inline at::ScalarType AccumulateType(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}
inline at::ScalarType AccumulateType(const at::Tensor& tensor) {
  return AccumulateType(tensor.scalar_type());
}

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_DTYPE_H_
