// The global L2 norm of sharded gradients, and what to multiply them by.
#ifndef SWITCHYARD_WORKER_TRAINER_OPTIM_GRAD_CLIP_H_
#define SWITCHYARD_WORKER_TRAINER_OPTIM_GRAD_CLIP_H_

#include "worker/trainer/parallel/comms.h"
#include "worker/trainer/parallel/fsdp.h"

namespace switchyard {

// Collective over dp_shard, whose ranks hold every slice of one replica, dense and expert, exactly
// once. Summed in fp64 in blocks of fixed size: the same bits with any number of threads, and on
// all ranks. After store.FinishGradients(). Infinite or NaN when a gradient is.
double GlobalGradNorm(const ShardedParameterStore& store, const Comms& comms);

// As torch.nn.utils.clip_grad_norm_: min(1, max_norm / (norm + 1e-6)); 1 without a max_norm (0).
double ClipCoefficient(double norm, double max_norm);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_OPTIM_GRAD_CLIP_H_
