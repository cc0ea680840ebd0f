#include "worker/trainer/ops/embedding.h"

#include <ATen/ATen.h>

#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops {

at::Tensor EmbeddingForward(const at::Tensor& tokens_T, const at::Tensor& weight_VH) {
#if defined(SY_CUDA)
  if (on_cuda::ServesEmbedding(weight_VH)) return on_cuda::EmbeddingForward(tokens_T, weight_VH);
#endif
  return weight_VH.index_select(0, tokens_T);
}

void EmbeddingBackward(const at::Tensor& dx_TH, const at::Tensor& tokens_T, int64_t padding_row,
                       at::Tensor dweight_VH, bool accumulate) {
  if (!accumulate) dweight_VH.zero_();
#if defined(SY_CUDA)
  if (on_cuda::ServesEmbedding(dx_TH)) {
    return on_cuda::EmbeddingBackward(dx_TH, tokens_T, padding_row, dweight_VH);
  }
#endif
  at::Tensor dx = dx_TH.to(AccumulateType(dx_TH));
  if (padding_row >= 0) dx = dx.masked_fill(tokens_T.eq(padding_row).unsqueeze(1), 0);
  const bool narrow = dweight_VH.scalar_type() == at::kBFloat16;  // else rounded at every row
  at::Tensor sum_VH = narrow ? at::zeros(dweight_VH.sizes(), dx.options()) : dweight_VH;
  if (dx_TH.is_cpu()) {
    // On the CPU index_add_ adds the rows of one id in their order, whatever the threads.
    sum_VH.index_add_(0, tokens_T, dx);
  } else {
    sum_VH.index_put_({tokens_T.to(at::kLong)}, dx, /*accumulate=*/true);  // sorts: no atomics
  }
  if (narrow) dweight_VH.add_(sum_VH);
}

}  // namespace switchyard::ops
