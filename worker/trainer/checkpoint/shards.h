// What one rank holds of the model: the seam between the trainer, which owns the tensors, and the
// code that reads and writes checkpoints.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SHARDS_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SHARDS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "worker/trainer/parallel/bucket_layout.h"

namespace switchyard {

// Elements [begin, end) of one flat bucket, which may reach past layout.numel into its padding.
// Tensors are 1-D, contiguous, of end - begin elements, on any device; handles share storage with
// the trainer's. Loading writes into them and leaves padding as it is; saving reads them.
//
// The fp32 master of bf16 weights is, in bits: (weight << 16) + remainder, with the remainder a
// two's complement int16 (NVIDIA's store_param_remainders). The weight is thus the master rounded
// to nearest, ties away from zero.
struct BucketShard {
  BucketLayout layout;  // of an expert bucket: this ep rank's experts only
  int64_t begin = 0;
  int64_t end = 0;
  at::Tensor weights;     // float32 or bfloat16
  at::Tensor remainder;   // int16 beside bf16 weights that have a master, else undefined
  at::Tensor exp_avg;     // float32 or bfloat16; undefined: no optimizer state is loaded or saved
  at::Tensor exp_avg_sq;  // likewise
  // This rank saves the range. Exactly one rank of the gang is the writer of each real element: of
  // the replicas of a shard (dp_replicate axis) the first.
  bool writer = true;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SHARDS_H_
