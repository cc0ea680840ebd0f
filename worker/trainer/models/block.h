// One decoder layer:
//     x = x + attention(norm(x));  x = x + ffn(norm(x)),  ffn dense or Mixture-of-Experts.
// Acquires and releases its own buckets and finishes their gradients.
//
// T tokens, H hidden.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_BLOCK_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_BLOCK_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/trainer/models/attention.h"
#include "worker/trainer/models/batch_context.h"
#include "worker/trainer/models/deferred_gradients.h"
#include "worker/trainer/models/mlp.h"
#include "worker/trainer/models/moe_block.h"
#include "worker/trainer/parallel/bucket_layout.h"
#include "worker/trainer/parallel/parameter_store.h"

namespace switchyard {

struct BlockSaved {
  at::Tensor x_TH;
  // Undefined when the block is to be recomputed (then of `moe` only the decision is there).
  at::Tensor middle_TH;  // after attention
  AttentionSaved attention;
  MlpSaved mlp;
  MoeSaved moe;
};

// Where a layer's buckets are in the store. A dense layer has no experts bucket: -1.
struct BlockBuckets {
  const BucketLayout* dense_layout = nullptr;
  const BucketLayout* experts_layout = nullptr;
  int dense = -1;
  int experts = -1;
};

class Block {
 public:
  // Borrows the store and the layouts that `buckets` points to.
  Block(int64_t layer, const BlockBuckets& buckets, ParameterStore& store);

  bool is_moe() const { return buckets_.experts >= 0; }
  // A hint that the block comes next.
  void Prefetch() const;

  // `saved` may be null (no backward follows); with `recompute` it gets the input and the router's
  // decision only. `sums` of a MoE layer; may be null.
  at::Tensor Forward(const BatchContext& context, const at::Tensor& x_TH, bool recompute,
                     BlockSaved* saved, RoutingSums* sums) const;
  // Consumes `saved`. `deferred` holds what the block after has left to be computed; when this
  // returns it holds what this block leaves (the end of its dense bucket included), which is
  // nothing where no token rows travel.
  at::Tensor Backward(const BatchContext& context, const at::Tensor& dy_TH,
                      const at::Tensor& daux_E, BlockSaved saved,
                      DeferredGradients* deferred) const;

 private:
  void Recompute(const BatchContext& context, const LayerParameters& weights,
                 const ExpertParameters& experts, BlockSaved* saved) const;

  int64_t layer_;
  BlockBuckets buckets_;
  ParameterStore& store_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_BLOCK_H_
