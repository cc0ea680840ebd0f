#include "worker/trainer/ops/rope.h"

#include <ATen/ATen.h>

namespace switchyard::ops {
namespace {

at::Tensor Rotate(const at::Tensor& x_TNd, const RopeAngles& angles, bool backward) {
  TORCH_CHECK(x_TNd.dim() == 3 && x_TNd.size(0) == angles.cos_Tr.size(0) &&
                  x_TNd.size(2) == 2 * angles.cos_Tr.size(1),
              "rope: x must be [", angles.cos_Tr.size(0), ", heads, ", 2 * angles.cos_Tr.size(1),
              "], got ", x_TNd.sizes());
  const int64_t half = x_TNd.size(2) / 2;
  const at::Tensor cos = angles.cos_Tr.unsqueeze(1);
  const at::Tensor sin = angles.sin_Tr.unsqueeze(1);
  const at::Tensor first = x_TNd.narrow(2, 0, half);
  const at::Tensor second = x_TNd.narrow(2, half, half);
  at::Tensor y_TNd = at::empty(x_TNd.sizes(), x_TNd.options());
  at::Tensor y_first = y_TNd.narrow(2, 0, half);
  at::Tensor y_second = y_TNd.narrow(2, half, half);
  at::mul_out(y_first, first, cos);
  at::mul_out(y_second, second, cos);
  const at::Tensor cross_first = second * sin;
  const at::Tensor cross_second = first * sin;
  if (backward) {
    y_first.add_(cross_first);
    y_second.sub_(cross_second);
  } else {
    y_first.sub_(cross_first);
    y_second.add_(cross_second);
  }
  return y_TNd;
}

}  // namespace

RopeAngles MakeRopeAngles(const at::Tensor& positions_T, const at::Tensor& inverse_frequencies_r,
                          double attention_scale, at::ScalarType type) {
  const at::Tensor angle_Tr =
      positions_T.to(at::kFloat).unsqueeze(1) * inverse_frequencies_r.unsqueeze(0);
  return {angle_Tr.cos().mul_(attention_scale).to(type),
          angle_Tr.sin().mul_(attention_scale).to(type)};
}

at::Tensor RopeForward(const at::Tensor& x_TNd, const RopeAngles& angles) {
  return Rotate(x_TNd, angles, /*backward=*/false);
}

at::Tensor RopeBackward(const at::Tensor& dy_TNd, const RopeAngles& angles) {
  return Rotate(dy_TNd, angles, /*backward=*/true);
}

}  // namespace switchyard::ops
