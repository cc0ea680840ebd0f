// CombinePush and CombineReduce: the sums of a token's rows, by rank and then over ranks.
#include "kernels/common/vec.cuh"
#include "kernels/dispatch/protocol.cuh"

namespace switchyard::kernels {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kLaneColumns = 8;                  // one 16-byte load
constexpr int kWarpColumns = 32 * kLaneColumns;  // columns that a warp loads at a time
constexpr int kPushWarps = 16;
constexpr int kPushThreads = 32 * kPushWarps;
constexpr int kChunkColumns = 4 * kWarpColumns;  // of one bulk store: 2 KiB
constexpr int kPushSharedBytes = kPushWarps * 2 * 2 * kChunkColumns;
constexpr int kReduceThreads = 256;

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

// sum[b] += the rows `row` of lanes first .. first + kRows, at kBlocks blocks of columns from
// `column` on; lanes behind the last row have -1. All loads are in flight together.
template <int kRows, int kBlocks>
__device__ __forceinline__ void AddRows(const Bf16* rows, int row, int first, int column,
                                        int hidden, float (&sum)[kBlocks][kLaneColumns]) {
  uint4 words[kRows][kBlocks];
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    const int64_t from = __shfl_sync(kAllLanes, row, first + j);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int at = column + b * kWarpColumns;
      words[j][b] =
          from >= 0 && at < hidden ? LoadWords(rows + from * hidden + at) : make_uint4(0, 0, 0, 0);
    }
  }
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) Add8(words[j][b], sum[b]);
  }
}

// The partial sum of `num_rows` compacted rows, as bf16 words.
template <int kRows, int kBlocks>
__device__ __forceinline__ void PartialSum(const Bf16* rows, int row, int num_rows, int column,
                                           int hidden, uint4 (&partial)[kBlocks]) {
  float sum[kBlocks][kLaneColumns] = {};
  for (int first = 0; first < num_rows; first += kRows) {
    AddRows<kRows, kBlocks>(rows, row, first, column, hidden, sum);
  }
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) partial[b] = Pack8(sum[b]);
}

__device__ __forceinline__ float SumPartials(const float* partials, int num_partials,
                                             int64_t max_rows, int row) {
  float sum = 0.f;
  for (int i = 0; i < num_partials && row >= 0; ++i) sum += partials[i * max_rows + row];
  return sum;
}

// One chunk of a record's sum into shared memory, kBlocks blocks of columns at a time.
template <int kRows, int kBlocks>
__device__ __forceinline__ void StageChunk(const CombinePushParams& p, int row, int num_rows,
                                           int first_column, Bf16* chunk) {
  const int hidden = p.group.shape.hidden;
  const int lane_column = threadIdx.x % 32 * kLaneColumns;
#pragma unroll 1
  for (int start = 0; start < kChunkColumns; start += kBlocks * kWarpColumns) {
    const int column = first_column + start + lane_column;
    uint4 partial[kBlocks];
    PartialSum<kRows, kBlocks>(p.rows, row, num_rows, column, hidden, partial);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      if (column + b * kWarpColumns < hidden) {
        StoreWords(chunk + start + b * kWarpColumns + lane_column, partial[b]);
      }
    }
  }
}

// One warp per record.
__global__ void __launch_bounds__(kPushThreads, 1)
    CombinePushKernel(const DispatchView view, const CombinePushParams p) {
  extern __shared__ __align__(128) uint8_t staging[];
  if (__syncthreads_or(view.Aborted())) return;
  const DispatchShape& s = p.group.shape;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t round = NextRound(view, DispatchKind::kCombinePush);
  const int parity = round % 2;
  const auto* const tables = reinterpret_cast<const DispatchTables*>(p.plan.tables);
  const int num_records = tables->record_base_here[s.ranks];
  const int warps = gridDim.x * kPushWarps;
  int num_chunks = 0;
  for (int i = warp * gridDim.x + blockIdx.x; i < num_records; i += warps) {
    // Warps begin in different sources' records, and each rank at its successor's: not all write to
    // one.
    int record = i + tables->record_base_here[p.group.rank];
    if (record >= num_records) record -= num_records;
    int source = 0;
    while (record >= tables->record_base_here[source + 1]) ++source;
    const int sum = tables->sum_base_there[source] + record - tables->record_base_here[source];
    int row = lane < s.top_k ? p.plan.record_rows[int64_t{record} * s.top_k + lane] : -1;
    if (p.row_partials != nullptr && lane < s.top_k) {
      view.WeightSums(source, parity, sum)[lane] =
          SumPartials(p.row_partials, p.num_partials, p.plan.max_rows, row);
    }
    const int num_rows = CompactRows(row);
    Bf16* const out = view.Sum(source, parity, sum);
    for (int column = 0; column < s.hidden; column += kChunkColumns) {
      Bf16* const chunk =
          reinterpret_cast<Bf16*>(staging) + (2 * warp + num_chunks++ % 2) * kChunkColumns;
      if (lane == 0) cute::tma_store_wait<1>();  // the store before the last has left `chunk`
      __syncwarp();
      if (num_rows <= 1) {
        StageChunk<1, 4>(p, row, num_rows, column, chunk);
      } else if (num_rows == 2) {
        StageChunk<2, 4>(p, row, num_rows, column, chunk);
      } else {
        StageChunk<4, 2>(p, row, num_rows, column, chunk);
      }
      cutlass::arch::fence_view_async_shared();
      __syncwarp();
      if (lane == 0) {
        const int columns = min(kChunkColumns, s.hidden - column);
        cute::SM90_BULK_COPY_S2G::copy(chunk, out + column, 2 * columns);
        cute::tma_store_arrive();
      }
    }
  }
  if (lane == 0) FinishBulkStores();
  FinishRound(view, DispatchKind::kCombinePush, DispatchSignal::kSumsArrived, round);
}

// One warp per token; kBlocks blocks of columns at a time keep enough loads in flight where there
// are few ranks.
template <int kRanks, int kBlocks>
__global__ void __launch_bounds__(kReduceThreads)
    ReduceKernel(const DispatchView view, const CombineReduceParams p) {
  if (__syncthreads_or(view.Aborted())) return;
  const DispatchShape& s = p.group.shape;
  const int rank = p.group.rank;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t round = NextRound(view, DispatchKind::kCombineReduce);
  const int parity = round % 2;
  const auto* const tables = reinterpret_cast<const DispatchTables*>(p.plan.tables);
  const int64_t warps = int64_t{gridDim.x} * (kReduceThreads / 32);
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
    for (int start = 0; start < s.hidden; start += kBlocks * kWarpColumns) {
      const int column = start + lane * kLaneColumns;
      uint4 words[kRanks][kBlocks];
#pragma unroll
      for (int d = 0; d < kRanks; ++d) {
        const int64_t sum = __shfl_sync(kAllLanes, my_sum, d);
        const Bf16* const from = view.Sum(rank, parity, sum) + column;
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          const bool exists = column + b * kWarpColumns < s.hidden;
          words[d][b] = d != rank && sum >= 0 && exists ? LoadWords(from + b * kWarpColumns)
                                                        : make_uint4(0, 0, 0, 0);
        }
      }
      uint4 own[kBlocks] = {};
      if (num_rows > 0) PartialSum<4, kBlocks>(p.rows, row, num_rows, column, s.hidden, own);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        float total[kLaneColumns] = {};
#pragma unroll
        for (int d = 0; d < kRanks; ++d) {
          if (owners >> d & 1) Add8(d == rank ? own[b] : words[d][b], total);
        }
        const int64_t at = token * s.hidden + column + b * kWarpColumns;
        if (column + b * kWarpColumns >= s.hidden) continue;
        if (p.residual != nullptr) Add8(LoadWords(p.residual + at), total);
        Store8(p.out + at, total);
      }
    }
  }
  FinishRound(view, DispatchKind::kCombineReduce, DispatchSignal::kSumsConsumed, round);
}

using ReduceFunction = void (*)(DispatchView, CombineReduceParams);

ReduceFunction ReduceKernelFor(int ranks) {
  if (ranks <= 2) return &ReduceKernel<2, 2>;
  return ranks <= 4 ? &ReduceKernel<4, 1> : &ReduceKernel<8, 1>;
}

}  // namespace

cudaError_t CombinePush(const CombinePushParams& p, cudaStream_t stream) {
  if (!IsSupported(p.group, p.plan) || p.blocks < 1) return cudaErrorInvalidValue;
  const DispatchView view{p.group, DispatchArenaLayout(p.group.shape)};
  const cudaError_t error =
      LaunchWait(view, DispatchKind::kCombinePush, DispatchSignal::kSumsConsumed, 2,
                 DispatchPhase::kCombineRoom, p.layer, stream);
  if (error != cudaSuccess) return error;
  CombinePushKernel<<<p.blocks, kPushThreads, kPushSharedBytes, stream>>>(view, p);
  return cudaGetLastError();
}

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
  const int64_t all = CeilDiv(p.plan.tokens, kReduceThreads / 32);
  const int64_t blocks = p.blocks > 0 ? p.blocks : all > 0 ? all : 1;
  const ReduceFunction kernel = ReduceKernelFor(p.group.shape.ranks);
  kernel<<<static_cast<unsigned>(blocks), kReduceThreads, 0, stream>>>(view, p);
  return cudaGetLastError();
}

cudaError_t LoadCombineKernels() {
  cudaFuncAttributes attributes;
  for (const int ranks : {2, 4, 8}) {
    const cudaError_t error =
        cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(ReduceKernelFor(ranks)));
    if (error != cudaSuccess) return error;
  }
  return cudaFuncSetAttribute(CombinePushKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kPushSharedBytes);
}

}  // namespace switchyard::kernels
