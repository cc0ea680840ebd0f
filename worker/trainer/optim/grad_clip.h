// The global L2 norm of sharded gradients, what to multiply them by, and whether to use them.
#ifndef SWITCHYARD_WORKER_TRAINER_OPTIM_GRAD_CLIP_H_
#define SWITCHYARD_WORKER_TRAINER_OPTIM_GRAD_CLIP_H_

#include <ATen/core/Tensor.h>

#include "worker/trainer/parallel/comms.h"
#include "worker/trainer/parallel/fsdp.h"

namespace switchyard {

// Whether and how a step's gradients become an update.
struct UpdateControl {
  double norm = 0;      // of all gradients, before clipping
  double scale = 1;     // gradients are multiplied by it
  bool apply = true;    // false: norm or loss is not finite, the update is skipped
  at::Tensor device{};  // CUDA: int32 [3], the bits of kernels::StepControl, instead of the above

  // The decision on the host; waits for the device when it is there.
  UpdateControl Read() const;
  // From a copy of `device` on the host.
  static UpdateControl Decode(const at::Tensor& host);
};

// Collective over dp_shard, whose ranks hold every slice of one replica, dense and expert, exactly
// once. After store.FinishGradients(). `loss`: float64, 0-dim, on the store's device, the same on
// all ranks. `max_norm` 0: no clipping.
// On the CPU squares are summed in fp64 in blocks of fixed size: the same bits with any number of
// threads, and on all ranks. On CUDA by kernels/adamw in one pass per bucket, in fp32 and then
// fp64, again in a fixed order; nothing waits for the device, and a norm above 1.8e19 counts as not
// finite.
UpdateControl ControlUpdate(const ShardedParameterStore& store, const Comms& comms,
                            const at::Tensor& loss, double max_norm);

// As torch.nn.utils.clip_grad_norm_: min(1, max_norm / (norm + 1e-6)); 1 without a max_norm (0).
double ClipCoefficient(double norm, double max_norm);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_OPTIM_GRAD_CLIP_H_
