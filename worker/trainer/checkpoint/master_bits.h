// The fp32 master of a bf16 weight as the weight and a 16-bit rest (shards.h). Elementwise, any
// device, any shape.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_MASTER_BITS_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_MASTER_BITS_H_

#include <ATen/core/Tensor.h>

namespace switchyard {

struct MasterParts {
  at::Tensor weight;     // bfloat16: the master rounded to nearest, ties away from zero
  at::Tensor remainder;  // int16: bits(master) - (bits(weight) << 16)
};

// `master`: float32, finite. A value that rounds past the largest bf16 gives the weight infinity,
// and still joins to the same bits.
MasterParts SplitMaster(const at::Tensor& master);
// float32, the exact inverse.
at::Tensor JoinMaster(const at::Tensor& weight, const at::Tensor& remainder);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_MASTER_BITS_H_
