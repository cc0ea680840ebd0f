// Token embedding. T tokens, V vocabulary, H hidden. CUDA, bf16: H % 8 == 0, tokens int32; else
// composed of ATen's operations.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_EMBEDDING_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_EMBEDDING_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace switchyard::ops {

// tokens int32 or int64 [T], weight [V, H] -> [T, H].
at::Tensor EmbeddingForward(const at::Tensor& tokens_T, const at::Tensor& weight_VH);
// dweight += dx, row by row in token order, so that sums are the same bits whatever the number of
// threads; without `accumulate` all other rows become 0. Tokens equal to `padding_row` add nothing
// (-1: none).
void EmbeddingBackward(const at::Tensor& dx_TH, const at::Tensor& tokens_T, int64_t padding_row,
                       at::Tensor dweight_VH, bool accumulate);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_EMBEDDING_H_
