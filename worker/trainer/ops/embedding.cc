#include "worker/trainer/ops/embedding.h"

#include <ATen/ATen.h>

namespace switchyard::ops {

at::Tensor EmbeddingForward(const at::Tensor& tokens_T, const at::Tensor& weight_VH) {
  return weight_VH.index_select(0, tokens_T);
}

void EmbeddingBackward(const at::Tensor& dx_TH, const at::Tensor& tokens_T, int64_t padding_row,
                       at::Tensor dweight_VH) {
  at::Tensor dx = dx_TH.to(dweight_VH.scalar_type());
  if (padding_row >= 0) dx = dx.masked_fill(tokens_T.eq(padding_row).unsqueeze(1), 0);
  // On the CPU index_add_ adds the rows of one id in their order, whatever the threads.
  dweight_VH.index_add_(0, tokens_T, dx);
}

}  // namespace switchyard::ops
