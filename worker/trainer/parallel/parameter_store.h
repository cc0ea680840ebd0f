// Where a model's weights and gradients come from while it computes. The model knows only whole
// buckets; who shards, gathers and reduces them is behind this.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_PARAMETER_STORE_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_PARAMETER_STORE_H_

#include <ATen/core/Tensor.h>

namespace switchyard {

// Where the backward puts a bucket's gradient.
struct GradientBuffer {
  at::Tensor flat;  // [numel] on the weights' device: float32, bfloat16, or float64 in tests
  // false: the contents are undefined (they may be NaN), and whoever was told so writes every
  // element of the bucket, zeros where there is no gradient. true: add.
  bool accumulate = false;
};

// Buckets are numbered as in the list of BucketLayouts that the store was made from. Calls come
// from one thread. On several ranks every call that may communicate is made in the same order on
// all ranks, also by a rank whose micro-batch is empty.
class ParameterStore {
 public:
  virtual ~ParameterStore() = default;
  // The bucket's weights, flat [numel], in the model's dtype. Valid until the matching Release;
  // gathers when needed. May be called for several buckets at a time, and nested for one.
  virtual at::Tensor Acquire(int bucket) = 0;
  virtual void Release(int bucket) = 0;
  // Starts a gather that a later Acquire will wait for. A hint.
  virtual void Prefetch(int bucket) = 0;
  // The buffer for this micro-batch's gradient of the bucket. Only the first call of a step says
  // accumulate == false: fresh buffers are neither cleared nor read. They may be allocated in that
  // call, so ask when the gradient is about to be written, not earlier.
  virtual GradientBuffer Gradient(int bucket) = 0;
  // All of this micro-batch's gradient has been added. In the last micro-batch of a step the sum
  // over ranks starts now.
  virtual void GradientDone(int bucket) = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_PARAMETER_STORE_H_
