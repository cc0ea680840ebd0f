#include "worker/trainer/checkpoint/master_bits.h"

#include <ATen/ATen.h>

namespace switchyard {

MasterParts SplitMaster(const at::Tensor& master) {
  TORCH_CHECK(master.scalar_type() == at::kFloat, "bug: split master: expected float32, got ",
              master.scalar_type());
  const at::Tensor bits = master.contiguous().view(at::kInt);
  // Truncation to 16 bits keeps the low half; taking it off leaves a multiple of 2^16.
  const at::Tensor remainder = bits.to(at::kShort);
  const at::Tensor high = at::bitwise_right_shift(bits - remainder.to(at::kInt), 16);
  return {high.to(at::kShort).view(at::kBFloat16), remainder};
}

at::Tensor JoinMaster(const at::Tensor& weight, const at::Tensor& remainder) {
  TORCH_CHECK(weight.scalar_type() == at::kBFloat16 && remainder.scalar_type() == at::kShort,
              "bug: join master: expected bfloat16 and int16, got ", weight.scalar_type(), " and ",
              remainder.scalar_type());
  const at::Tensor high = weight.contiguous().view(at::kShort).to(at::kInt);
  return (at::bitwise_left_shift(high, 16) + remainder.to(at::kInt)).view(at::kFloat);
}

}  // namespace switchyard
