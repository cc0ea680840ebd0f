// Grouped-query self-attention with per-head RMSNorm of q and k before rotary embedding (Qwen3).
//
// T tokens, H hidden, N heads, M kv heads, d head_dim, P = (N + 2 M) d.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_ATTENTION_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include "worker/trainer/models/batch_context.h"
#include "worker/trainer/models/deferred_gradients.h"
#include "worker/trainer/models/parameters.h"
#include "worker/trainer/ops/attention.h"

namespace switchyard {

struct AttentionSaved {
  at::Tensor qkv_TP;  // before norm and rotation, which the backward computes again
  ops::AttentionOutput core;
};

// x_TH is the normed input. `layer` decides about the sliding window. `saved` may be null.
at::Tensor AttentionForward(const BatchContext& context, int64_t layer,
                            const AttentionParameters& weights, const at::Tensor& x_TH,
                            AttentionSaved* saved);

// Everything of the forward that the backward needs, without the output projection.
void AttentionRecompute(const BatchContext& context, int64_t layer,
                        const AttentionParameters& weights, const at::Tensor& x_TH,
                        AttentionSaved* saved);

// Returns dx; adds to `gradients`, or overwrites them. The projections' gradients are left to
// `later`, unless it is null.
at::Tensor AttentionBackward(const BatchContext& context, int64_t layer,
                             const AttentionParameters& weights, const at::Tensor& dy_TH,
                             const at::Tensor& x_TH, const AttentionSaved& saved,
                             const AttentionParameters& gradients, bool accumulate,
                             DeferredGradients* later = nullptr);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_ATTENTION_H_
