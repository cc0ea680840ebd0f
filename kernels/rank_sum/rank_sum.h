// The sum of what several ranks sent, in the order of the ranks: the same bits on every rank and in
// every run, and those of the loop over ranks on a CPU.
//   out[i] = parts[0][i] + parts[1][i] + ...   in fp32, rounded once to the dtype of the parts
//
// One pass: each part is read once. Any size; vectors of 16 bytes where sizes and pointers allow.
// Allocates nothing; asynchronous on `stream`. Errors: cudaErrorInvalidValue for no rank or a
// negative size, else the launch error.
#ifndef SWITCHYARD_KERNELS_RANK_SUM_RANK_SUM_H_
#define SWITCHYARD_KERNELS_RANK_SUM_RANK_SUM_H_

#include "kernels/common/dtype.h"
#include "kernels/common/launch.h"

namespace switchyard::kernels {

template <class T>
struct RankSumParams {
  const T* parts;  // in   [ranks, size]
  T* out;          // out  [size]; not among the parts
  int64_t size;
  int ranks;
};
cudaError_t RankSum(const RankSumParams<float>& p, cudaStream_t stream);
cudaError_t RankSum(const RankSumParams<Bf16>& p, cudaStream_t stream);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_RANK_SUM_RANK_SUM_H_
