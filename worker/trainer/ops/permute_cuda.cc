#include <ATen/ATen.h>

#include "kernels/permute/permute.h"
#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/kernel_call.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops::on_cuda {

bool ServesPermute(const at::Tensor& x_TH, const RowMap& map) {
  return HasKernels(x_TH) && x_TH.is_contiguous() && x_TH.size(1) % 8 == 0 &&
         x_TH.size(1) <= 16384 && map.top_k <= 32;
}

PermutedRows PermuteRows(const at::Tensor& x_TH, const at::Tensor& scalars_TK, const RowMap& map) {
  PermutedRows out;
  out.rows_NH = at::empty({map.num_rows, x_TH.size(1)}, x_TH.options());
  if (scalars_TK.defined()) out.scalars_N = at::empty({map.num_rows}, scalars_TK.options());
  kernels::PermuteParams p = {};
  p.x = Bf16Of(x_TH);
  p.row_of = IntOf(map.row_of_TK);
  p.weight = FloatOf(scalars_TK);
  p.out = Bf16Of(out.rows_NH);
  p.row_weight = FloatOf(out.scalars_N);
  p.tokens = map.num_tokens;
  p.hidden = static_cast<int>(x_TH.size(1));
  p.top_k = static_cast<int>(map.top_k);
  CheckKernel(kernels::Permute(p, CurrentStream()), "permute");
  return out;
}

at::Tensor UnpermuteSum(const at::Tensor& rows_NH, const at::Tensor& residual_TH, const RowMap& map,
                        const at::Tensor& scalars_PN, at::Tensor* scalars_TK) {
  TORCH_CHECK(!residual_TH.defined() || residual_TH.is_contiguous(),
              "unpermute: residual must be contiguous");
  at::Tensor out_TH = at::empty({map.num_tokens, rows_NH.size(1)}, rows_NH.options());
  kernels::CombineParams p = {};
  p.rows = Bf16Of(rows_NH);
  p.row_of = IntOf(map.row_of_TK);
  p.residual = Bf16Of(residual_TH);
  p.out = Bf16Of(out_TH);
  p.tokens = map.num_tokens;
  p.max_rows = rows_NH.size(0);
  p.hidden = static_cast<int>(rows_NH.size(1));
  p.top_k = static_cast<int>(map.top_k);
  if (scalars_TK != nullptr) {
    *scalars_TK = at::empty({map.num_tokens, map.top_k}, rows_NH.options().dtype(at::kFloat));
    p.dp_partial = FloatOf(scalars_PN);
    p.d_weight = FloatOf(*scalars_TK);
    p.num_partials = static_cast<int>(scalars_PN.size(0));
  }
  CheckKernel(kernels::Combine(p, CurrentStream()), "unpermute");
  return out_TH;
}

}  // namespace switchyard::ops::on_cuda
