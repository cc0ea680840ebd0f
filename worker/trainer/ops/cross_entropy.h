// Cross entropy fused with the language-model head. Tokens go through the head in chunks, forward
// and backward together, so that the logits of a whole micro-batch never exist; tokens without a
// target never reach it.
//
// T tokens, S supervised tokens, H hidden, V vocabulary. CUDA, bf16: H and V multiples of 8,
// V <= 327680, int32 ids; else composed of ATen's operations.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_CROSS_ENTROPY_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_CROSS_ENTROPY_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace switchyard::ops {

// The tokens that have a target, int32 or int64, on the device of the hidden states.
struct Targets {
  at::Tensor rows_S;  // ascending; undefined: all T
  at::Tensor ids_S;   // in [0, V)
};

// Where the gradient of scale * sum goes.
struct CrossEntropyGradients {
  double scale = 1;
  at::Tensor dhidden_TH;  // overwritten; rows without a target become 0
  at::Tensor dweight_VH;
  bool accumulate = true;  // add to dweight, else overwrite it
};

// hidden [T, H], weight [V, H]. Logits are computed in the dtype of `hidden` and raised to the
// accumulation dtype before the softmax. chunk_tokens > 0. Returns the sum over the supervised
// tokens, natural log: float64, 0-dim, on the device. `gradients` may be null.
at::Tensor LinearCrossEntropy(const at::Tensor& hidden_TH, const at::Tensor& weight_VH,
                              const Targets& targets, int64_t chunk_tokens,
                              const CrossEntropyGradients* gradients);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_CROSS_ENTROPY_H_
