// CombinePush: the partial sums of this rank, to the ranks whose tokens they are. Many warps with
// loads in flight; sums leave by bulk copies from shared memory.
#include "kernels/dispatch/combine.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kChunkColumns = 4 * kWarpColumns;  // of one bulk store: 2 KiB
constexpr int kOutputs = 2;                      // chunks of a warp that are being stored
constexpr int kRowWarps = 28;
constexpr int kWeightWarps = 4;
constexpr int kThreads = 32 * (kRowWarps + kWeightWarps);
constexpr int kSharedBytes = kRowWarps * kOutputs * 2 * kChunkColumns;

// Where a record's sum goes.
struct SumPlace {
  int source, sum;
};
__device__ __forceinline__ SumPlace FindSum(const DispatchTables* tables, int record) {
  int source = 0;
  while (record >= tables->record_base_here[source + 1]) ++source;
  return {source, tables->sum_base_there[source] + record - tables->record_base_here[source]};
}

// Sums of the rows' floats, one thread per record and k; they wait for memory only, so few warps do
// beside those of the rows.
__device__ void PushWeightSums(const DispatchView& view, const CombinePushParams& p, int parity,
                               int first, int threads) {
  const auto* const tables = reinterpret_cast<const DispatchTables*>(p.plan.tables);
  const int top_k = p.group.shape.top_k;
  const int num_records = tables->record_base_here[p.group.shape.ranks];
  for (int i = first; i < num_records * top_k; i += threads) {
    const int record = i / top_k;
    const float sum =
        SumPartials(p.row_partials, p.num_partials, p.plan.max_rows, p.plan.record_rows[i]);
    const SumPlace place = FindSum(tables, record);
    view.WeightSums(place.source, parity, place.sum)[i - record * top_k] = sum;
  }
}

// sum[b] = the sums of `count` rows, those of lanes [0, count), at kBlocks blocks of columns from
// `column` on; kRows of them at a time, all their loads in flight together.
template <int kRows, int kBlocks>
__device__ __forceinline__ void SumRows(const CombinePushParams& p, int row, int count, int column,
                                        float (&sum)[kBlocks][kLaneColumns]) {
  const int hidden = p.group.shape.hidden;
  for (int first = 0; first < count; first += kRows) {
    uint4 words[kRows][kBlocks];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t from = __shfl_sync(kAllLanes, row, first + j);  // -1 behind the last
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const int at = column + b * kWarpColumns;
        words[j][b] = from >= 0 && at < hidden ? LoadWords(p.rows + from * hidden + at)
                                               : make_uint4(0, 0, 0, 0);
      }
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) Add8(words[j][b], sum[b]);
    }
  }
}

// One chunk of a sum, to shared memory.
template <int kRows, int kBlocks>
__device__ __forceinline__ void SumChunk(const CombinePushParams& p, int row, int count,
                                         int first_column, Bf16* output) {
  const int lane_column = threadIdx.x % 32 * kLaneColumns;
#pragma unroll 1
  for (int start = 0; start < kChunkColumns; start += kBlocks * kWarpColumns) {
    float sum[kBlocks][kLaneColumns] = {};
    const int column = first_column + start + lane_column;
    SumRows<kRows, kBlocks>(p, row, count, column, sum);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      if (column + b * kWarpColumns < p.group.shape.hidden) {
        Store8(output + start + b * kWarpColumns + lane_column, sum[b]);
      }
    }
  }
}

// One warp's records: first, first + step, ... `outputs`: shared memory [kOutputs, kChunkColumns].
__device__ void PushSums(const DispatchView& view, const CombinePushParams& p, int parity,
                         int first, int step, Bf16* outputs) {
  const auto* const tables = reinterpret_cast<const DispatchTables*>(p.plan.tables);
  const int hidden = p.group.shape.hidden, top_k = p.group.shape.top_k;
  const int num_records = tables->record_base_here[p.group.shape.ranks];
  const int lane = threadIdx.x % 32;
  // Each rank begins with its successor's records, so that not all write to one.
  const auto record_at = [&](int i) {
    const int record = i + tables->record_base_here[p.group.rank];
    return record < num_records ? record : record - num_records;
  };
  const auto load_rows = [&](int i) {
    if (i >= num_records || lane >= top_k) return -1;
    return p.plan.record_rows[int64_t{record_at(i)} * top_k + lane];
  };
  int next = load_rows(first);
  int num_outputs = 0;
  for (int i = first; i < num_records; i += step) {
    int row = next;
    const int count = CompactRows(row);
    next = load_rows(i + step);  // arrives behind this record's rows
    const SumPlace place = FindSum(tables, record_at(i));
    Bf16* const out = view.Sum(place.source, parity, place.sum);
    for (int column = 0; column < hidden; column += kChunkColumns) {
      Bf16* const output = outputs + num_outputs++ % kOutputs * kChunkColumns;
      if (lane == 0) cute::tma_store_wait<kOutputs - 1>();  // its last store has read it
      __syncwarp();
      if (count <= 1) {
        SumChunk<1, 4>(p, row, count, column, output);
      } else if (count == 2) {
        SumChunk<2, 4>(p, row, count, column, output);
      } else {
        SumChunk<4, 2>(p, row, count, column, output);
      }
      cutlass::arch::fence_view_async_shared();
      __syncwarp();
      if (lane == 0) {
        cute::SM90_BULK_COPY_S2G::copy(output, out + column,
                                       2 * min(kChunkColumns, hidden - column));
        cute::tma_store_arrive();
      }
    }
  }
  if (lane == 0) FinishBulkStores();
}

__global__ void __launch_bounds__(kThreads, 1)
    CombinePushKernel(const __grid_constant__ DispatchView view,
                      const __grid_constant__ CombinePushParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  if (__syncthreads_or(view.Aborted())) return;
  const uint32_t round = NextRound(view, DispatchKind::kCombinePush);
  const int parity = round % 2;
  const int warp = threadIdx.x / 32;
  if (warp < kRowWarps) {
    // Neighbours in different blocks: the blocks' shares differ by one record at most.
    PushSums(view, p, parity, warp * gridDim.x + blockIdx.x, kRowWarps * gridDim.x,
             reinterpret_cast<Bf16*>(shared) + warp * kOutputs * kChunkColumns);
  } else if (p.row_partials != nullptr) {
    const int threads = 32 * kWeightWarps;
    PushWeightSums(view, p, parity, blockIdx.x * threads + threadIdx.x - 32 * kRowWarps,
                   gridDim.x * threads);
  }
  FinishRound(view, DispatchKind::kCombinePush, DispatchSignal::kSumsArrived, round);
}

}  // namespace

cudaError_t CombinePush(const CombinePushParams& p, cudaStream_t stream) {
  if (!IsSupported(p.group, p.plan) || p.blocks < 1) return cudaErrorInvalidValue;
  const DispatchView view{p.group, DispatchArenaLayout(p.group.shape)};
  const cudaError_t error =
      LaunchWait(view, DispatchKind::kCombinePush, DispatchSignal::kSumsConsumed, 2,
                 DispatchPhase::kCombineRoom, p.layer, stream);
  if (error != cudaSuccess) return error;
  CombinePushKernel<<<p.blocks, kThreads, kSharedBytes, stream>>>(view, p);
  return cudaGetLastError();
}

cudaError_t LoadCombinePushKernels() {
  return cudaFuncSetAttribute(CombinePushKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kSharedBytes);
}

}  // namespace switchyard::kernels
