#include "worker/trainer/parallel/local_parameter_store.h"

#include <ATen/ATen.h>

#include <limits>
#include <numeric>

namespace switchyard {

LocalParameterStore::LocalParameterStore(const std::vector<BucketLayout>& buckets,
                                         at::ScalarType type, at::Device device,
                                         at::ScalarType gradient_type)
    : buckets_(buckets),
      written_(buckets.size(), false),
      held_(buckets.size(), 0),
      done_(buckets.size(), 0) {
  if (type == at::kDouble) gradient_type = at::kDouble;
  for (const BucketLayout& bucket : buckets_) {
    weights_.push_back(at::empty({bucket.numel}, at::device(device).dtype(type)));
    gradients_.push_back(at::full({bucket.numel}, std::numeric_limits<double>::quiet_NaN(),
                                  at::device(device).dtype(gradient_type)));
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

GradientBuffer LocalParameterStore::Gradient(int bucket) {
  const bool accumulate = written_.at(bucket);
  written_[bucket] = true;
  return {gradients_[bucket], accumulate};
}

void LocalParameterStore::GradientDone(int bucket) { ++done_.at(bucket); }

void LocalParameterStore::ForgetGradients() { written_.assign(written_.size(), false); }

int LocalParameterStore::num_held() const { return std::accumulate(held_.begin(), held_.end(), 0); }

}  // namespace switchyard
