// Whole buckets on one rank: nothing is gathered, nothing is reduced. The sharded store on one rank
// does the same and serves the optimizer too; this one is for tests and tools that only compute.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_LOCAL_PARAMETER_STORE_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_LOCAL_PARAMETER_STORE_H_

#include <ATen/core/Tensor.h>

#include <vector>

#include "worker/trainer/parallel/bucket_layout.h"
#include "worker/trainer/parallel/parameter_store.h"

namespace switchyard {

class LocalParameterStore final : public ParameterStore {
 public:
  // Weights are uninitialised; gradients are NaN, so that whoever adds where it should overwrite is
  // found out. `type`: float32 or bfloat16 with gradients in `gradient_type` (float32 or bfloat16),
  // or float64, whose gradients are float64 too.
  LocalParameterStore(const std::vector<BucketLayout>& buckets, at::ScalarType type,
                      at::Device device = at::kCPU, at::ScalarType gradient_type = at::kFloat);

  at::Tensor Acquire(int bucket) override;
  void Release(int bucket) override;
  void Prefetch(int bucket) override;
  GradientBuffer Gradient(int bucket) override;
  void GradientDone(int bucket) override;

  // A new step: the next Gradient of each bucket says accumulate == false.
  void ForgetGradients();
  // What has been accumulated, [numel].
  const at::Tensor& gradient(int bucket) const { return gradients_.at(bucket); }
  const std::vector<BucketLayout>& buckets() const { return buckets_; }
  // Acquired more often than released, over all buckets: 0 after a complete pass.
  int num_held() const;
  // Times that GradientDone was called for the bucket.
  int num_done(int bucket) const { return done_[bucket]; }

 private:
  std::vector<BucketLayout> buckets_;
  std::vector<at::Tensor> weights_;
  std::vector<at::Tensor> gradients_;
  std::vector<bool> written_;
  std::vector<int> held_;
  std::vector<int> done_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_LOCAL_PARAMETER_STORE_H_
