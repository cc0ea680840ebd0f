// The specification of models/mlp.h in plain ATen, for autograd. Used by tests only.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_MLP_TWIN_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_MLP_TWIN_H_

#include <ATen/ATen.h>

namespace switchyard {

// gate_up [2F, H], down [H, F], x [T, H] -> [T, H].
inline at::Tensor MlpTwin(const at::Tensor& gate_up, const at::Tensor& down, const at::Tensor& x) {
  const auto parts = at::matmul(x, gate_up.t()).chunk(2, 1);
  return at::matmul(parts[0] * at::sigmoid(parts[0]) * parts[1], down.t());
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_MLP_TWIN_H_
