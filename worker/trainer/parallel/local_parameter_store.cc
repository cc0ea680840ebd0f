#include "worker/trainer/parallel/local_parameter_store.h"

#include <ATen/ATen.h>

#include <numeric>

#include "worker/trainer/ops/dtype.h"

namespace switchyard {

LocalParameterStore::LocalParameterStore(const std::vector<BucketLayout>& buckets,
                                         at::ScalarType type)
    : buckets_(buckets), held_(buckets.size(), 0), done_(buckets.size(), 0) {
  for (const BucketLayout& bucket : buckets_) {
    weights_.push_back(at::empty({bucket.numel}, type));
    gradients_.push_back(at::zeros({bucket.numel}, ops::AccumulateType(type)));
  }
}

at::Tensor LocalParameterStore::Acquire(int bucket) {
  ++held_.at(bucket);
  return weights_[bucket];
}

void LocalParameterStore::Release(int bucket) {
  TORCH_CHECK(--held_.at(bucket) >= 0, "bug: released bucket ", buckets_[bucket].name,
              " more often than acquired");
}

void LocalParameterStore::Prefetch(int) {}

at::Tensor LocalParameterStore::Gradient(int bucket) { return gradients_.at(bucket); }

void LocalParameterStore::GradientDone(int bucket) { ++done_.at(bucket); }

void LocalParameterStore::ZeroGradients() {
  for (at::Tensor& gradient : gradients_) gradient.zero_();
}

int LocalParameterStore::num_held() const { return std::accumulate(held_.begin(), held_.end(), 0); }

}  // namespace switchyard
