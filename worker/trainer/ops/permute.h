// Copies each token once per chosen expert, so that one expert's rows are contiguous, and sums the
// copies back.
//
// T tokens, K experts per token, H hidden, N = T K rows.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_PERMUTE_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_PERMUTE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace switchyard::ops {

// Rows by expert, ascending; inside an expert by token, then k.
struct Permutation {
  int64_t top_k = 0;
  at::Tensor copy_of_row_N;              // int64: row n is copy (token * K + k)
  at::Tensor row_of_copy_N;              // int64: the inverse
  std::vector<int64_t> rows_per_expert;  // [num_experts]
};

// ids int64 [T, K], contiguous or not. Errors: an id outside [0, num_experts).
Permutation MakePermutation(const at::Tensor& ids_TK, int64_t num_experts);

// [T, H] -> [N, H], any dtype.
at::Tensor PermuteRows(const at::Tensor& x_TH, const Permutation& permutation);
// [N, H] -> [T, H]: sums in the accumulation dtype in ascending order of k, rounded once.
at::Tensor UnpermuteSum(const at::Tensor& rows_NH, const Permutation& permutation);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_PERMUTE_H_
