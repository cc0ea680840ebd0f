// What both halves of a combine share.
#ifndef SWITCHYARD_KERNELS_DISPATCH_COMBINE_CUH_
#define SWITCHYARD_KERNELS_DISPATCH_COMBINE_CUH_

#include "kernels/common/vec.cuh"
#include "kernels/dispatch/protocol.cuh"

namespace switchyard::kernels {

constexpr int kLaneColumns = 8;                  // of one 16-byte access
constexpr int kWarpColumns = 32 * kLaneColumns;  // of one by each lane

// The rows of lanes whose `row` is >= 0, in lane order: lane i gets the i-th; -1 behind the last.
// Returns their number.
__device__ __forceinline__ int CompactRows(int& row) {
  const int lane = threadIdx.x % 32;
  const unsigned rows = __ballot_sync(kAllLanes, row >= 0);
  int compacted = -1, taken = 0;
  for (unsigned rest = rows; rest != 0; rest &= rest - 1) {
    const int next = __shfl_sync(kAllLanes, row, __ffs(rest) - 1);
    if (lane == taken++) compacted = next;
  }
  row = compacted;
  return __popc(rows);
}

__device__ __forceinline__ void Add8(const uint4& words, float (&sum)[kLaneColumns]) {
  float v[kLaneColumns];
  Unpack8(words, v);
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) sum[i] += v[i];
}

__device__ __forceinline__ float SumPartials(const float* partials, int num_partials,
                                             int64_t max_rows, int row) {
  float sum = 0.f;
  for (int i = 0; i < num_partials && row >= 0; ++i) sum += partials[i * max_rows + row];
  return sum;
}

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_DISPATCH_COMBINE_CUH_
