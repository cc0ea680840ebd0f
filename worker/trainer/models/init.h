// Fresh weights for a model that is trained from its config alone (model.random_init).
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_INIT_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_INIT_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/trainer/models/model_config.h"
#include "worker/trainer/parallel/bucket_layout.h"

namespace switchyard {

// Fills elements [begin, begin + flat.numel()) of the bucket, as Transformers initialises: norm
// weights 1, biases 0, the embedding's padding row 0, everything else normal(0, initializer_range).
// Elements past bucket.numel (padding of a sharded bucket) become 0.
//
// An element depends on (seed, tensor name, its index in the tensor) only: every sharding draws the
// same model. `flat` is 1-D, contiguous, float32, bfloat16 or float64; the fp32 value is rounded to
// its dtype. On a GPU the same numbers are drawn there, up to the last bit of its logarithm and
// cosine.
void InitializeBucket(const ModelConfig& config, const BucketLayout& bucket, uint64_t seed,
                      int64_t begin, at::Tensor flat);

// What a GPU's buckets are filled with, in ATen's operations on any device. For tests.
void InitializeBucketByOperations(const ModelConfig& config, const BucketLayout& bucket,
                                  uint64_t seed, int64_t begin, at::Tensor flat);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_INIT_H_
