#include "worker/trainer/ops/rope.h"

#include <ATen/ATen.h>

#include "worker/trainer/ops/on_cuda.h"
#include "worker/trainer/ops/rms_norm.h"

namespace switchyard::ops {
namespace {

at::Tensor Rotate(const at::Tensor& x_TNd, const RopeAngles& angles, bool backward) {
  TORCH_CHECK(x_TNd.dim() == 3 && angles.cos_Tr.defined() &&
                  x_TNd.size(0) == angles.cos_Tr.size(0) &&
                  x_TNd.size(2) == 2 * angles.cos_Tr.size(1),
              "rope: x ", x_TNd.sizes(), " does not fit ", angles.positions_T.sizes(),
              " positions with ", angles.table.cos_Pr.size(1), " angles");
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

RopeTable MakeRopeTable(const at::Tensor& inverse_frequencies_r, double attention_scale,
                        int64_t num_positions, at::ScalarType type, at::Device device) {
  const at::Tensor angle_Pr =
      at::arange(num_positions, at::kFloat).unsqueeze(1) * inverse_frequencies_r.unsqueeze(0);
  const auto rounded = [&](at::Tensor value) {
    return value.mul_(attention_scale).to(type).to(at::kFloat).to(device);
  };
  return {rounded(angle_Pr.cos()), rounded(angle_Pr.sin())};
}

RopeAngles MakeRopeAngles(const RopeTable& table, const at::Tensor& positions_T,
                          at::ScalarType type) {
  RopeAngles out;
  out.table = table;
  out.positions_T = positions_T;
#if defined(SY_CUDA)
  if (on_cuda::ServesRope(positions_T, type, 2 * table.cos_Pr.size(1))) return out;
#endif
  out.cos_Tr = table.cos_Pr.index_select(0, positions_T).to(type);
  out.sin_Tr = table.sin_Pr.index_select(0, positions_T).to(type);
  return out;
}

at::Tensor RopeForward(const at::Tensor& x_TNd, const RopeAngles& angles) {
  return Rotate(x_TNd, angles, /*backward=*/false);
}

at::Tensor RopeBackward(const at::Tensor& dy_TNd, const RopeAngles& angles) {
  return Rotate(dy_TNd, angles, /*backward=*/true);
}

QueriesAndKeys QkNormRopeForward(const QueriesAndKeys& raw, const QkNorm& norm,
                                 const RopeAngles& angles) {
#if defined(SY_CUDA)
  if (!angles.cos_Tr.defined()) return on_cuda::QkNormRopeForward(raw, norm, angles);
#endif
  return {RopeForward(RmsNormForward(raw.q_TNd, norm.q_d, norm.eps).y_RD, angles),
          RopeForward(RmsNormForward(raw.k_TMd, norm.k_d, norm.eps).y_RD, angles)};
}

void QkNormRopeBackward(const QueriesAndKeys& d, const QueriesAndKeys& raw, const QkNorm& norm,
                        const RopeAngles& angles, const QueriesAndKeys& draw, QkNorm dnorm,
                        bool accumulate) {
#if defined(SY_CUDA)
  if (!angles.cos_Tr.defined()) {
    return on_cuda::QkNormRopeBackward(d, raw, norm, angles, draw, dnorm, accumulate);
  }
#endif
  draw.q_TNd.copy_(RmsNormBackward(RopeBackward(d.q_TNd, angles), raw.q_TNd, {}, norm.q_d, norm.eps,
                                   {}, dnorm.q_d, accumulate));
  draw.k_TMd.copy_(RmsNormBackward(RopeBackward(d.k_TMd, angles), raw.k_TMd, {}, norm.k_d, norm.eps,
                                   {}, dnorm.k_d, accumulate));
}

}  // namespace switchyard::ops
