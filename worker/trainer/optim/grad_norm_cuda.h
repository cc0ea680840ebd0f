// ControlUpdate for gradients on a GPU; throws in a build without SY_CUDA.
#ifndef SWITCHYARD_WORKER_TRAINER_OPTIM_GRAD_NORM_CUDA_H_
#define SWITCHYARD_WORKER_TRAINER_OPTIM_GRAD_NORM_CUDA_H_

#include "worker/trainer/optim/grad_clip.h"

namespace switchyard {

UpdateControl ControlUpdateOnCuda(const ShardedParameterStore& store, const Comms& comms,
                                  const at::Tensor& loss, double max_norm);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_OPTIM_GRAD_NORM_CUDA_H_
