// Linear layers on CUDA in bf16. Private to this folder; linear.cc calls here. Builds without
// SY_CUDA have none of it. Arguments and results are those of the public function of the same name;
// calls do not wait for the device, and give the same bits on every run.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_LINEAR_CUDA_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_LINEAR_CUDA_H_

#include <ATen/core/Tensor.h>

namespace switchyard::ops::on_cuda {

// bf16 rows, a float32 or bf16 buffer whose rows are dense.
bool ServesLinearBackwardWeight(const at::Tensor& dy_RO, const at::Tensor& x_RI,
                                const at::Tensor& dweight_OI);
void LinearBackwardWeight(const at::Tensor& dy_RO, const at::Tensor& x_RI, at::Tensor dweight_OI,
                          bool accumulate);

}  // namespace switchyard::ops::on_cuda

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_LINEAR_CUDA_H_
