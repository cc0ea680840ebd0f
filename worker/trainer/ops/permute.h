// Copies each token once per chosen expert, so that one expert's rows are contiguous, and sums the
// copies back.
//
// T tokens, K copies per token, H hidden, N rows, E experts, P partial sums. CUDA, bf16: H % 8 ==
// 0, H <= 16384, K <= 32; else composed of ATen's operations.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_PERMUTE_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_PERMUTE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace switchyard::ops {

// Where the copies of tokens lie among N rows. Every row belongs to one copy.
struct RowMap {
  int64_t num_tokens = 0;
  int64_t top_k = 0;
  int64_t num_rows = 0;  // N
  at::Tensor row_of_TK;  // int32 [T * K]: the row of each copy; negative: it has none
};

// Every copy has a row: by expert, ascending; inside an expert by token, then k. N = T K.
struct Permutation : RowMap {
  at::Tensor offsets_E1;  // int32: the first row of each expert, and N
};

// ids [T, K], int32 or int64. Errors: an id outside [0, num_experts); on CUDA not checked.
Permutation MakePermutation(const at::Tensor& ids_TK, int64_t num_experts);

// Rows of each expert, on the host: waits for the device when the offsets are there.
std::vector<int64_t> RowsPerExpert(const at::Tensor& offsets_E1);

struct PermutedRows {
  at::Tensor rows_NH;
  at::Tensor scalars_N;  // undefined without scalars
};
// [T, H] -> [N, H], any dtype; with scalars [T, K] (undefined: none) -> [N].
PermutedRows PermuteRows(const at::Tensor& x_TH, const at::Tensor& scalars_TK, const RowMap& map);
// [N, H] -> [T, H]: sums in the accumulation dtype in ascending order of k, then the residual
// [T, H] (undefined: none), rounded once. With `scalars_TK` also the way back of scalars: each is
// the sum over P of scalars_PN at its row, in order; 0 without a row.
at::Tensor UnpermuteSum(const at::Tensor& rows_NH, const at::Tensor& residual_TH, const RowMap& map,
                        const at::Tensor& scalars_PN = {}, at::Tensor* scalars_TK = nullptr);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_PERMUTE_H_
