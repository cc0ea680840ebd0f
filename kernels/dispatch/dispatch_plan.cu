// Route, Exchange, and the one-warp kernel that waits.
#include "kernels/dispatch/protocol.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kExchangeThreads = 1024;

__global__ void __launch_bounds__(32)
    WaitKernel(const DispatchView view, DispatchKind kind, DispatchSignal signal, uint32_t lag,
               DispatchPhase phase, int layer) {
  const int peer = threadIdx.x;
  const DispatchGroup& group = view.group;
  if (peer >= group.shape.ranks || peer == group.rank) return;
  const uint32_t round = NextRound(view, kind);
  const uint64_t* const cell = view.Signal(group.rank, signal, peer);
  // A cell only moves forward; rounds wrap around.
  Poll(view, peer, phase, layer, round,
       [&] { return static_cast<int32_t>(CellTag(LoadAcquireSystem(cell)) - (round - lag)) >= 0; });
}

// The counts of a round: experts, then ranks. Two sets by turns: a peer can be ahead by one round
// only, as its next Exchange needs this rank's counts.
__device__ uint64_t* CountCells(const DispatchView& view, int owner, int source, uint32_t round) {
  const DispatchShape& s = view.group.shape;
  return reinterpret_cast<uint64_t*>(view.group.arenas[owner] + view.arena.counts) +
         (int64_t{round % 2} * s.ranks + source) * (s.experts + s.ranks);
}

// The sum over the first `num_segments` segments of the records for rank `rank`, by one warp.
__device__ int SumSegments(const DispatchPlanData& plan, int ranks, int rank, int num_segments) {
  int sum = 0;
  for (int i = threadIdx.x % 32; i < num_segments; i += 32) sum += plan.segments[i * ranks + rank];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

// One thread per token: which ranks it goes to, and how many earlier tokens of its segment go there
// too. The last block sends this rank's counts to all ranks, its own too.
__global__ void __launch_bounds__(kDispatchSegment)
    RouteKernel(const DispatchView view, const DispatchRouteParams p) {
  constexpr int kWarps = kDispatchSegment / 32;
  __shared__ int first_row[kMaxDispatchRanks];
  __shared__ int in_warp[kWarps][kMaxDispatchRanks];
  __shared__ int records[kMaxDispatchRanks];
  if (__syncthreads_or(view.Aborted())) return;
  const DispatchShape& s = p.group.shape;
  const int rank = p.group.rank;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t round = NextRound(view, DispatchKind::kRoute);
  if (threadIdx.x < s.ranks) {
    first_row[threadIdx.x] = p.offsets[threadIdx.x * (s.experts / s.ranks)];
  }
  __syncthreads();
  const int64_t token = int64_t{blockIdx.x} * kDispatchSegment + threadIdx.x;
  unsigned to = 0;
  for (int k = 0; k < s.top_k && token < p.plan.tokens; ++k) {
    const int row = p.row_of[token * s.top_k + k];
    int owner = 0;
    while (owner + 1 < s.ranks && row >= first_row[owner + 1]) ++owner;
    to |= 1u << owner;
  }
  int before[kMaxDispatchRanks];
#pragma unroll
  for (int d = 0; d < kMaxDispatchRanks; ++d) {
    const unsigned sent = __ballot_sync(kAllLanes, to >> d & 1);
    before[d] = __popc(sent & ((1u << lane) - 1));
    if (lane == 0) in_warp[warp][d] = __popc(sent);
  }
  __syncthreads();
#pragma unroll
  for (int d = 0; d < kMaxDispatchRanks; ++d) {
    if (d >= s.ranks) break;
    int slot = before[d];
    for (int w = 0; w < warp; ++w) slot += in_warp[w][d];
    if (token < p.plan.tokens) {
      // The own rank's tokens are not records: a mark is enough.
      p.plan.slots[token * s.ranks + d] = (to >> d & 1) == 0 ? -1 : d == rank ? 0 : slot;
    }
    if (threadIdx.x == kDispatchSegment - 1) {
      p.plan.segments[int64_t{blockIdx.x} * s.ranks + d] =
          d == rank ? 0 : slot + static_cast<int>(to >> d & 1);
    }
  }
  if (!IsLastBlock(view, DispatchKind::kRoute)) return;
  if (warp < s.ranks) {
    const int sum = SumSegments(p.plan, s.ranks, warp, gridDim.x);
    if (lane == 0) records[warp] = sum;
  }
  __syncthreads();
  const int columns = s.experts + s.ranks;
  for (int column = threadIdx.x; column < columns; column += kDispatchSegment) {
    const int count = column < s.experts ? p.offsets[column + 1] - p.offsets[column]
                                         : records[column - s.experts];
    // A cell carries its own tag, so cells need no order among each other.
    for (int i = 0; i < s.ranks; ++i) {
      StoreRelaxedSystem(CountCells(view, (rank + i) % s.ranks, rank, round) + column,
                         Cell(round, count));
    }
  }
  if (threadIdx.x == 0) view.State(rank)->rounds[static_cast<int>(DispatchKind::kRoute)] = round;
}

struct ExchangeShared {
  int counts[kMaxDispatchRanks][kMaxDispatchExperts + kMaxDispatchRanks];
  int start[kMaxDispatchExperts + 1];  // first row of each expert, all ranks' experts in a line
  int warp_sums[kExchangeThreads / 32];
};

// shared.start = exclusive prefix sums of `total`, thread e's value for expert e.
__device__ void ScanExperts(int total, int experts, ExchangeShared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int inclusive = total;
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(kAllLanes, inclusive, step);
    if (lane >= step) inclusive += below;
  }
  if (lane == 31) shared.warp_sums[warp] = inclusive;
  __syncthreads();
  for (int w = 0; w < warp; ++w) inclusive += shared.warp_sums[w];
  if (static_cast<int>(threadIdx.x) < experts) shared.start[threadIdx.x + 1] = inclusive;
  if (threadIdx.x == 0) shared.start[0] = 0;
  __syncthreads();
}

__device__ void WriteTables(const DispatchExchangeParams& p, const ExchangeShared& shared) {
  const DispatchShape& s = p.group.shape;
  const int rank = p.group.rank;
  const int local = s.experts / s.ranks;
  auto* const tables = reinterpret_cast<DispatchTables*>(p.plan.tables);
  for (int e = threadIdx.x; e < s.experts; e += kExchangeThreads) {
    int row = shared.start[e] - shared.start[e / local * local];
    for (int source = 0; source < rank; ++source) row += shared.counts[source][e];
    tables->copy_base[e] = row;
  }
  for (int i = threadIdx.x; i <= local; i += kExchangeThreads) {
    const int64_t row = shared.start[rank * local + i] - shared.start[rank * local];
    p.plan.offsets[i] = static_cast<int>(min(row, static_cast<int64_t>(p.plan.max_rows)));
  }
  const int r = threadIdx.x;
  const auto records = [&](int source, int owner) {
    return shared.counts[source][s.experts + owner];
  };
  if (r < s.ranks) {
    int record_there = 0, record_here = 0, sum_there = 0, sum_here = 0;
    for (int i = 0; i < rank; ++i) record_there += records(i, r);
    for (int i = 0; i < r; ++i) record_here += records(i, rank);
    for (int i = 0; i < rank; ++i) sum_there += records(r, i);
    for (int i = 0; i < r; ++i) sum_here += records(rank, i);
    tables->record_base_there[r] = record_there;
    tables->record_base_here[r] = record_here;
    tables->sum_base_there[r] = sum_there;
    tables->sum_base_here[r] = sum_here;
    if (r == s.ranks - 1) tables->record_base_here[s.ranks] = record_here + records(r, rank);
  }
  if (threadIdx.x == 0) {
    int needed = 0;
    for (int d = 0; d < s.ranks; ++d) {
      needed = max(needed, shared.start[(d + 1) * local] - shared.start[d * local]);
    }
    *p.plan.needed_rows = needed;
  }
}

__global__ void __launch_bounds__(kExchangeThreads)
    ExchangeKernel(const DispatchView view, const DispatchExchangeParams p) {
  __shared__ ExchangeShared shared;
  const DispatchShape& s = p.group.shape;
  const int rank = p.group.rank;
  const int columns = s.experts + s.ranks;
  const uint32_t round = NextRound(view, DispatchKind::kExchange);
  bool failed = false;
  for (int i = threadIdx.x; i < s.ranks * columns && !failed; i += kExchangeThreads) {
    const int source = i / columns, column = i % columns;
    const uint64_t* const address = CountCells(view, rank, source, round) + column;
    uint64_t cell = 0;
    failed = !Poll(view, source, DispatchPhase::kExchange, p.layer, round, [&] {
      cell = LoadRelaxedSystem(address);
      return CellTag(cell) == round;
    });
    shared.counts[source][column] = static_cast<int>(static_cast<uint32_t>(cell));
  }
  if (__syncthreads_or(failed)) {
    // What computes on the rows must not follow undefined offsets: there are none.
    for (int e = threadIdx.x; e <= s.experts / s.ranks; e += kExchangeThreads) {
      p.plan.offsets[e] = 0;
    }
    return;
  }

  int total = 0;
  const int expert = threadIdx.x;
  for (int source = 0; source < s.ranks && expert < s.experts; ++source) {
    total += shared.counts[source][expert];
  }
  ScanExperts(total, s.experts, shared);
  WriteTables(p, shared);
  if (threadIdx.x == 0) view.State(rank)->rounds[static_cast<int>(DispatchKind::kExchange)] = round;
}

// Final slots and places, one thread per token.
__global__ void __launch_bounds__(kDispatchSegment)
    PlaceKernel(const DispatchView view, const DispatchExchangeParams p) {
  __shared__ int slot_base[kMaxDispatchRanks];
  __shared__ int offsets[kMaxDispatchExperts + 1];
  const DispatchShape& s = p.group.shape;
  if (__syncthreads_or(view.Aborted())) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp < s.ranks) {
    const int sum = SumSegments(p.plan, s.ranks, warp, blockIdx.x);
    if (lane == 0) slot_base[warp] = sum;
  }
  for (int e = threadIdx.x; e <= s.experts; e += kDispatchSegment) offsets[e] = p.offsets[e];
  __syncthreads();
  const int64_t token = int64_t{blockIdx.x} * kDispatchSegment + threadIdx.x;
  if (token >= p.plan.tokens) return;
  for (int d = 0; d < s.ranks; ++d) {
    int32_t* const slot = p.plan.slots + token * s.ranks + d;
    if (*slot >= 0) *slot += slot_base[d];
  }
  const auto* const tables = reinterpret_cast<const DispatchTables*>(p.plan.tables);
  const int local = s.experts / s.ranks;
  for (int k = 0; k < s.top_k; ++k) {
    const int64_t copy = token * s.top_k + k;
    const int row = p.row_of[copy];
    // The last expert that starts at or before the row; those without rows start with the next.
    int expert = 0;
    for (int end = s.experts; end - expert > 1;) {
      const int middle = (expert + end) / 2;
      if (offsets[middle] <= row) {
        expert = middle;
      } else {
        end = middle;
      }
    }
    const int row_there = tables->copy_base[expert] + row - offsets[expert];
    p.plan.places[copy] = expert / local << kPlaceRowBits | row_there;
  }
}

}  // namespace

cudaError_t LaunchWait(const DispatchView& view, DispatchKind kind, DispatchSignal signal,
                       uint32_t lag, DispatchPhase phase, int layer, cudaStream_t stream) {
  if (view.group.shape.ranks == 1) return cudaSuccess;
  WaitKernel<<<1, 32, 0, stream>>>(view, kind, signal, lag, phase, layer);
  return cudaGetLastError();
}

cudaError_t DispatchRoute(const DispatchRouteParams& p, cudaStream_t stream) {
  if (!IsSupported(p.group, p.plan)) return cudaErrorInvalidValue;
  const DispatchView view{p.group, DispatchArenaLayout(p.group.shape)};
  const auto blocks = static_cast<unsigned>(NumDispatchSegments(p.plan.tokens));
  RouteKernel<<<blocks, kDispatchSegment, 0, stream>>>(view, p);
  return cudaGetLastError();
}

cudaError_t DispatchExchange(const DispatchExchangeParams& p, cudaStream_t stream) {
  if (!IsSupported(p.group, p.plan)) return cudaErrorInvalidValue;
  const DispatchView view{p.group, DispatchArenaLayout(p.group.shape)};
  ExchangeKernel<<<1, kExchangeThreads, 0, stream>>>(view, p);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess || p.plan.tokens == 0) return error;
  const auto blocks = static_cast<unsigned>(NumDispatchSegments(p.plan.tokens));
  PlaceKernel<<<blocks, kDispatchSegment, 0, stream>>>(view, p);
  return cudaGetLastError();
}

cudaError_t DispatchLoad() {
  const cudaError_t errors[] = {LoadPlanKernels(), LoadPushKernels(), LoadCombinePushKernels(),
                                LoadCombineReduceKernels()};
  for (const cudaError_t error : errors) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t LoadPlanKernels() {
  cudaFuncAttributes attributes;
  for (const void* kernel :
       {reinterpret_cast<const void*>(&WaitKernel), reinterpret_cast<const void*>(&RouteKernel),
        reinterpret_cast<const void*>(&ExchangeKernel),
        reinterpret_cast<const void*>(&PlaceKernel)}) {
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace switchyard::kernels
