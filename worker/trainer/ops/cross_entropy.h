// Cross entropy fused with the language-model head. Tokens go through the head in chunks, forward
// and backward together, so that the logits of a whole micro-batch never exist; tokens without a
// target never reach it.
//
// T tokens, H hidden, V vocabulary.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_CROSS_ENTROPY_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_CROSS_ENTROPY_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace switchyard::ops {

struct CrossEntropySums {
  double sum = 0;          // natural log, over the supervised tokens
  int64_t supervised = 0;  // targets that are not -100
};

// hidden [T, H], weight [V, H], targets int64 [T]. Logits are computed in the dtype of `hidden` and
// raised to the accumulation dtype before the softmax. chunk_tokens > 0.
CrossEntropySums LinearCrossEntropy(const at::Tensor& hidden_TH, const at::Tensor& weight_VH,
                                    const at::Tensor& targets_T, int64_t chunk_tokens);

// Also the gradient of scale * sum: writes it to `dhidden_TH` (rows without a target become 0) and
// adds it to `dweight_VH`.
CrossEntropySums LinearCrossEntropyWithGradient(const at::Tensor& hidden_TH,
                                                const at::Tensor& weight_VH,
                                                const at::Tensor& targets_T, int64_t chunk_tokens,
                                                double scale, at::Tensor dhidden_TH,
                                                at::Tensor dweight_VH);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_CROSS_ENTROPY_H_
