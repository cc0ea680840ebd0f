#include <ATen/ATen.h>

#include "kernels/rope/rope.h"
#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/kernel_call.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops::on_cuda {
namespace {

void CheckHeads(const QueriesAndKeys& heads) {
  for (const at::Tensor* x : {&heads.q_TNd, &heads.k_TMd}) {
    TORCH_CHECK(x->dim() == 3 && x->stride(2) == 1 && x->stride(1) == x->size(2),
                "rope: the heads of a token must be dense, got ", x->sizes(), " with strides ",
                x->strides());
  }
}

// The fields that forward and backward share.
template <class Params>
Params Shape(const QueriesAndKeys& raw, const QkNorm& norm, const RopeAngles& angles) {
  CheckHeads(raw);
  Params p = {};
  p.q = Bf16Of(raw.q_TNd);
  p.k = Bf16Of(raw.k_TMd);
  p.q_weight = Bf16Of(norm.q_d);
  p.k_weight = Bf16Of(norm.k_d);
  p.cos = FloatOf(angles.table.cos_Pr);
  p.sin = FloatOf(angles.table.sin_Pr);
  p.positions = IntOf(angles.positions_T);
  p.tokens = raw.q_TNd.size(0);
  p.q_stride = raw.q_TNd.stride(0);
  p.k_stride = raw.k_TMd.stride(0);
  p.q_heads = static_cast<int>(raw.q_TNd.size(1));
  p.k_heads = static_cast<int>(raw.k_TMd.size(1));
  p.head_dim = static_cast<int>(raw.q_TNd.size(2));
  p.eps = static_cast<float>(norm.eps);
  TORCH_CHECK(angles.positions_T.numel() == p.tokens, "rope: ", p.tokens, " tokens, ",
              angles.positions_T.numel(), " positions");
  return p;
}

}  // namespace

bool ServesRope(const at::Tensor& positions_T, at::ScalarType type, int64_t head_dim) {
  return positions_T.is_cuda() && type == at::kBFloat16 && (head_dim == 64 || head_dim == 128);
}

QueriesAndKeys QkNormRopeForward(const QueriesAndKeys& raw, const QkNorm& norm,
                                 const RopeAngles& angles) {
  QueriesAndKeys out = {at::empty(raw.q_TNd.sizes(), raw.q_TNd.options()),
                        at::empty(raw.k_TMd.sizes(), raw.k_TMd.options())};
  auto p = Shape<kernels::RopeParams>(raw, norm, angles);
  p.q_out = Bf16Of(out.q_TNd);
  p.k_out = Bf16Of(out.k_TMd);
  CheckKernel(kernels::Rope(p, CurrentStream()), "rope");
  return out;
}

void QkNormRopeBackward(const QueriesAndKeys& d, const QueriesAndKeys& raw, const QkNorm& norm,
                        const RopeAngles& angles, const QueriesAndKeys& draw, QkNorm dnorm,
                        bool accumulate) {
  CheckHeads(draw);
  TORCH_CHECK(draw.q_TNd.stride(0) == raw.q_TNd.stride(0) &&
                  draw.k_TMd.stride(0) == raw.k_TMd.stride(0) && d.q_TNd.is_contiguous() &&
                  d.k_TMd.is_contiguous(),
              "bug: rope: gradients lie otherwise than what they belong to");
  const at::TensorOptions wide = raw.q_TNd.options().dtype(at::kFloat);
  const int64_t head_dim = raw.q_TNd.size(2);
  const bool direct = dnorm.q_d.scalar_type() == at::kFloat;
  const at::Tensor dq_d = direct ? dnorm.q_d : at::empty({head_dim}, wide);
  const at::Tensor dk_d = direct ? dnorm.k_d : at::empty({head_dim}, wide);
  at::Tensor workspace = at::empty({kernels::kRopeGradBlocks, 2, head_dim}, wide);
  auto p = Shape<kernels::RopeGradParams>(raw, norm, angles);
  p.dq_out = Bf16Of(d.q_TNd);
  p.dk_out = Bf16Of(d.k_TMd);
  p.dq = Bf16Of(draw.q_TNd);
  p.dk = Bf16Of(draw.k_TMd);
  p.dq_weight = FloatOf(dq_d);
  p.dk_weight = FloatOf(dk_d);
  p.workspace = FloatOf(workspace);
  p.accumulate = direct && accumulate;
  CheckKernel(kernels::RopeGrad(p, CurrentStream()), "rope backward");
  if (!direct) {
    PutGradient(dq_d, accumulate, dnorm.q_d);
    PutGradient(dk_d, accumulate, dnorm.k_d);
  }
}

}  // namespace switchyard::ops::on_cuda
