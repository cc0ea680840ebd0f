// Token embedding. T tokens, V vocabulary, H hidden.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_EMBEDDING_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_EMBEDDING_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace switchyard::ops {

// tokens int64 [T], weight [V, H] -> [T, H].
at::Tensor EmbeddingForward(const at::Tensor& tokens_T, const at::Tensor& weight_VH);
// dweight += dx, row by row in token order, so that sums are the same bits whatever the number of
// threads. Tokens equal to `padding_row` add nothing (-1: none).
void EmbeddingBackward(const at::Tensor& dx_TH, const at::Tensor& tokens_T, int64_t padding_row,
                       at::Tensor dweight_VH);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_EMBEDDING_H_
