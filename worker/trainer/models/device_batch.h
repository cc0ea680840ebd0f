// One micro-batch where the model computes it.
//
// T tokens, S supervised tokens.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_DEVICE_BATCH_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_DEVICE_BATCH_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/trainer/models/decoder.h"
#include "worker/trainer/ops/cross_entropy.h"

namespace switchyard {

struct DeviceBatch {
  at::Tensor tokens_T;     // int32
  at::Tensor positions_T;  // int32
  ops::Targets targets;    // int32
  int64_t num_tokens = 0;
  int64_t supervised = 0;
  int64_t num_positions = 0;  // the largest position, plus 1
};

// Checks `batch` on the host (errors: decoder.h) and copies it to `device`, on CUDA as one piece
// through pinned memory and without waiting.
DeviceBatch CopyToDevice(const DecoderBatch& batch, int64_t vocab_size, at::Device device);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_DEVICE_BATCH_H_
