// Moves token rows to expert-major order and back. n = token * top_k + k numbers the token copies;
// row_of[n] is the expert-major row of copy n (router_topk.h makes it), a bijection into [0,
// max_rows), or negative for a copy that has no row here.
//
// hidden % 8 == 0 and <= 16384, 1 <= top_k <= 32; pointers are 16-byte aligned. tokens == 0 is
// valid. Deterministic: sums run over k in order, in fp32. Allocates nothing; asynchronous on
// `stream`. Errors: cudaErrorInvalidValue for an unsupported shape, else the launch error.
#ifndef SWITCHYARD_KERNELS_PERMUTE_PERMUTE_H_
#define SWITCHYARD_KERNELS_PERMUTE_PERMUTE_H_

#include "kernels/common/dtype.h"
#include "kernels/common/launch.h"

namespace switchyard::kernels {

// out[row_of[n], :] = x[n / top_k, :] and row_weight[row_of[n]] = weight[n]. Each token is read
// once.
struct PermuteParams {
  const Bf16* x;          // in   [tokens, hidden]
  const int32_t* row_of;  // in   [tokens * top_k]
  const float* weight;    // in   [tokens * top_k]; null: weights are not moved
  Bf16* out;              // out  [max_rows, hidden]
  float* row_weight;      // out  [max_rows]; null with weight
  int64_t tokens;
  int hidden, top_k;
};
cudaError_t Permute(const PermuteParams& p, cudaStream_t stream);

// out[t, :] = sum over k of rows[row_of[t * top_k + k], :] + residual[t, :], in this order, rounded
// once.
// The routing weight is already in the rows (grouped_gemm.h). As the gradient of Permute it also
// finishes the gradient of the weights: d_weight[n] = sum over i of dp_partial[i, row_of[n]].
struct CombineParams {
  const Bf16* rows;         // in   [max_rows, hidden]
  const int32_t* row_of;    // in   [tokens * top_k]
  const Bf16* residual;     // in   [tokens, hidden]; null: zero. May be `out`
  const float* dp_partial;  // in   [num_partials, max_rows]; null: no weight gradient
  Bf16* out;                // out  [tokens, hidden]
  float* d_weight;          // out  [tokens * top_k]; null with dp_partial
  int64_t tokens, max_rows;
  int hidden, top_k, num_partials;
};
cudaError_t Combine(const CombineParams& p, cudaStream_t stream);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_PERMUTE_PERMUTE_H_
