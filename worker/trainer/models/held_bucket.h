// A bucket's weights while they are used.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_HELD_BUCKET_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_HELD_BUCKET_H_

#include <ATen/core/Tensor.h>

#include "worker/trainer/parallel/parameter_store.h"

namespace switchyard {

// Acquires in the constructor, releases in the destructor, also when a computation throws.
class HeldBucket {
 public:
  HeldBucket(ParameterStore& store, int bucket)
      : store_(store), bucket_(bucket), flat_(store.Acquire(bucket)) {}
  ~HeldBucket() { store_.Release(bucket_); }
  HeldBucket(const HeldBucket&) = delete;
  HeldBucket& operator=(const HeldBucket&) = delete;

  const at::Tensor& flat() const { return flat_; }

 private:
  ParameterStore& store_;
  int bucket_;
  at::Tensor flat_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_HELD_BUCKET_H_
