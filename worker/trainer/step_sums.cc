#include "worker/trainer/step_sums.h"

#include <ATen/ATen.h>

namespace switchyard {

void StepSums::Add(const LossSums& microbatch) {
  supervised_ += microbatch.supervised;
  if (!ce_.defined()) {
    ce_ = microbatch.ce_sum;
    aux_ = microbatch.aux;
    copies_LE_ = microbatch.token_copies_LE;
  } else {
    ce_ = ce_ + microbatch.ce_sum;
    aux_ = aux_ + microbatch.aux;
    copies_LE_ = copies_LE_ + microbatch.token_copies_LE;
  }
}

at::Tensor StepSums::Reduce(Comm& world) const {
  const at::Tensor supervised =
      at::full({1}, static_cast<double>(supervised_), ce_.options().dtype(at::kDouble));
  at::Tensor sums = at::cat(
      {ce_.view({1}), aux_.view({1}), supervised, copies_LE_.reshape({-1}).to(at::kDouble)});
  world.AllReduceSum(sums);
  return sums;
}

StepNumbers StepSums::Unpack(const at::Tensor& sums) const {
  const double* values = sums.const_data_ptr<double>();
  StepNumbers numbers{values[0], values[1], static_cast<int64_t>(values[2]), {}};
  numbers.copies_LE = sums.narrow(0, 3, sums.numel() - 3).to(at::kLong).view(copies_LE_.sizes());
  return numbers;
}

}  // namespace switchyard
