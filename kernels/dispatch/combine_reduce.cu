// CombineReduce: the partial sums of all ranks, added where the tokens are.
#include "kernels/dispatch/combine.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsAtOnce = 4;

// This rank's partial sum at `column`, as the others send theirs: the rows of lanes
// [0, num_rows), rounded.
__device__ __forceinline__ uint4 SumOwnRows(const CombineReduceParams& p, int row, int num_rows,
                                            int column) {
  const int hidden = p.group.shape.hidden;
  float sum[kLaneColumns] = {};
  for (int first = 0; first < num_rows; first += kRowsAtOnce) {
    uint4 words[kRowsAtOnce];
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const int64_t from = __shfl_sync(kAllLanes, row, first + j);  // -1 behind the last
      words[j] = from >= 0 && column < hidden ? LoadWords(p.rows + from * hidden + column)
                                              : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) Add8(words[j], sum);
  }
  return Pack8(sum);
}

// One warp per token.
template <int kRanks>
__global__ void __launch_bounds__(kThreads, kRanks <= 2 ? 4 : 3)
    ReduceKernel(const DispatchView view, const CombineReduceParams p) {
  if (__syncthreads_or(view.Aborted())) return;
  const DispatchShape& s = p.group.shape;
  const int rank = p.group.rank;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t round = NextRound(view, DispatchKind::kCombineReduce);
  const int parity = round % 2;
  const auto* const tables = reinterpret_cast<const DispatchTables*>(p.plan.tables);
  const int64_t warps = int64_t{gridDim.x} * (kThreads / 32);
  for (int64_t token = int64_t{warp} * gridDim.x + blockIdx.x; token < p.plan.tokens;
       token += warps) {
    // Lane d knows the sum of rank d.
    int my_sum = -1;
    if (lane < s.ranks) {
      my_sum = p.plan.slots[token * s.ranks + lane];
      if (my_sum >= 0) my_sum += tables->sum_base_here[lane];
    }
    int place = lane < s.top_k ? p.plan.places[token * s.top_k + lane] : -1;
    int row = -1;
    if (place >= 0 && place >> kPlaceRowBits == rank) row = place & kPlaceRowMask;
    if (row >= p.plan.max_rows) row = -1;
    if (p.row_partials != nullptr) {
      const int owner = place < 0 ? rank : place >> kPlaceRowBits;
      const int64_t sum = __shfl_sync(kAllLanes, my_sum, owner);
      if (lane < s.top_k) {
        p.copy_sums[token * s.top_k + lane] =
            owner == rank ? SumPartials(p.row_partials, p.num_partials, p.plan.max_rows, row)
                          : view.WeightSums(rank, parity, sum)[lane];
      }
    }
    const int num_rows = CompactRows(row);
    const unsigned owners = __ballot_sync(kAllLanes, my_sum >= 0);
    for (int start = 0; start < s.hidden; start += kWarpColumns) {
      const int column = start + lane * kLaneColumns;
      const bool exists = column < s.hidden;
      uint4 words[kRanks];
#pragma unroll
      for (int d = 0; d < kRanks; ++d) {
        const int64_t sum = __shfl_sync(kAllLanes, my_sum, d);
        words[d] = d != rank && sum >= 0 && exists ? LoadWords(view.Sum(rank, parity, sum) + column)
                                                   : make_uint4(0, 0, 0, 0);
      }
      const uint4 own = SumOwnRows(p, row, num_rows, column);
      float total[kLaneColumns] = {};
#pragma unroll
      for (int d = 0; d < kRanks; ++d) {
        if (d == rank) words[d] = own;
        if (owners >> d & 1) Add8(words[d], total);
      }
      if (!exists) continue;
      const int64_t at = token * s.hidden + column;
      if (p.residual != nullptr) Add8(LoadWords(p.residual + at), total);
      Store8(p.out + at, total);
    }
  }
  FinishRound(view, DispatchKind::kCombineReduce, DispatchSignal::kSumsConsumed, round);
}

using ReduceFunction = void (*)(DispatchView, CombineReduceParams);

ReduceFunction ReduceKernelFor(int ranks) {
  if (ranks <= 2) return &ReduceKernel<2>;
  return ranks <= 4 ? &ReduceKernel<4> : &ReduceKernel<8>;
}

}  // namespace

cudaError_t CombineReduce(const CombineReduceParams& p, cudaStream_t stream) {
  if (!IsSupported(p.group, p.plan) || p.blocks < 0) return cudaErrorInvalidValue;
  if (p.plan.tokens > 0 && (p.row_partials == nullptr) != (p.copy_sums == nullptr)) {
    return cudaErrorInvalidValue;
  }
  const DispatchView view{p.group, DispatchArenaLayout(p.group.shape)};
  const cudaError_t error =
      LaunchWait(view, DispatchKind::kCombineReduce, DispatchSignal::kSumsArrived, 0,
                 DispatchPhase::kCombineArrival, p.layer, stream);
  if (error != cudaSuccess) return error;
  const int64_t all = CeilDiv(p.plan.tokens, kThreads / 32);
  const int64_t blocks = p.blocks > 0 ? p.blocks : all > 0 ? all : 1;
  const ReduceFunction kernel = ReduceKernelFor(p.group.shape.ranks);
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(view, p);
  return cudaGetLastError();
}

cudaError_t LoadCombineReduceKernels() {
  cudaFuncAttributes attributes;
  for (const int ranks : {2, 4, 8}) {
    const cudaError_t error =
        cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(ReduceKernelFor(ranks)));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace switchyard::kernels
