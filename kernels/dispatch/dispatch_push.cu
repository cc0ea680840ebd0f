// DispatchPush and DispatchExpand: rows by bulk copies through shared memory, no register touches
// them.
#include "kernels/dispatch/protocol.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kMaxRowThreads = 32 * kMaxRowWarps;

extern __shared__ __align__(128) uint8_t row_buffers[];

__global__ void __launch_bounds__(kMaxRowThreads, 1)
    PushKernel(const DispatchView view, const DispatchPushParams p) {
  __shared__ alignas(8) uint64_t arrived[kMaxRowWarps][kRowBuffers];
  if (__syncthreads_or(view.Aborted())) return;
  const DispatchShape& s = p.group.shape;
  const int rank = p.group.rank;
  const int lane = threadIdx.x % 32;
  const uint32_t round = NextRound(view, DispatchKind::kDispatchPush);
  const int parity = round % 2;
  const auto* const tables = reinterpret_cast<const DispatchTables*>(p.plan.tables);
  const int header_slots = DispatchHeaderSlots(s);
  // Lane j writes word j of a header: rows, then weights.
  const int k = lane % header_slots;
  const bool writes_row = lane < header_slots;
  const bool writes_header = p.headers && lane < 2 * header_slots;

  RowRing ring(row_buffers, arrived, 2 * s.hidden);
  StreamRows(
      ring, p.plan.tokens,
      [&](int64_t token) {
        bool remote = false;
        for (int d = 0; d < s.ranks; ++d) {
          remote |= d != rank && p.plan.slots[token * s.ranks + d] >= 0;
        }
        return remote;
      },
      [&](int64_t token) { return p.x + token * s.hidden; },
      [&](int64_t token) {
        // Lane d knows the record at rank d.
        int record = -1;
        if (lane < s.ranks && lane != rank) {
          const int slot = p.plan.slots[token * s.ranks + lane];
          if (slot >= 0) record = tables->record_base_there[lane] + slot;
        }
        int place = -1;
        int weight = 0;
        if (writes_header && k < s.top_k) {
          place = p.plan.places[token * s.top_k + k];
          if (p.weights != nullptr) weight = __float_as_int(p.weights[token * s.top_k + k]);
        }
        ring.Take();
        // Every rank starts with its own successor, so that not all write to one.
        for (int i = 1; i < s.ranks; ++i) {
          const int to = (rank + i) % s.ranks;
          const int record_there = __shfl_sync(kAllLanes, record, to);
          if (record_there < 0) continue;
          ring.Store(view.Record(to, parity, record_there));
          if (writes_header) {
            const bool is_there = place >= 0 && place >> kPlaceRowBits == to;
            const int row = is_there ? place & kPlaceRowMask : -1;
            view.Header(to, parity, record_there)[lane] = writes_row ? row : weight;
          }
        }
        ring.Release();
      });
  FinishRound(view, DispatchKind::kDispatchPush, DispatchSignal::kRecordsArrived, round);
}

__global__ void __launch_bounds__(kMaxRowThreads, 1)
    ExpandKernel(const DispatchView view, const DispatchExpandParams p) {
  __shared__ alignas(8) uint64_t arrived[kMaxRowWarps][kRowBuffers];
  if (__syncthreads_or(view.Aborted())) return;
  const DispatchShape& s = p.group.shape;
  const int rank = p.group.rank;
  const int lane = threadIdx.x % 32;
  const uint32_t round = NextRound(view, DispatchKind::kDispatchExpand);
  const int parity = round % 2;
  const auto* const tables = reinterpret_cast<const DispatchTables*>(p.plan.tables);
  const int64_t num_records = tables->record_base_here[s.ranks];

  RowRing ring(row_buffers, arrived, 2 * s.hidden);
  StreamRows(
      ring, num_records + p.plan.tokens,
      [&](int64_t item) {
        return item < num_records || p.plan.slots[(item - num_records) * s.ranks + rank] >= 0;
      },
      [&](int64_t item) {
        return item < num_records ? view.Record(rank, parity, item)
                                  : p.x + (item - num_records) * s.hidden;
      },
      [&](int64_t item) {
        int row = -1;
        float weight = 0.f;
        if (lane < s.top_k) {
          if (item >= num_records) {
            const int64_t copy = (item - num_records) * s.top_k + lane;
            const int place = p.plan.places[copy];
            if (place >> kPlaceRowBits == rank) row = place & kPlaceRowMask;
            if (p.row_weights != nullptr) weight = p.weights[copy];
          } else if (p.headers) {
            const int32_t* const header = view.Header(rank, parity, item);
            row = header[lane];
            weight = __int_as_float(header[DispatchHeaderSlots(s) + lane]);
          } else {
            row = p.plan.record_rows[item * s.top_k + lane];
          }
          if (row >= p.plan.max_rows) row = -1;
          if (item < num_records && p.headers) p.plan.record_rows[item * s.top_k + lane] = row;
          if (p.row_weights != nullptr && row >= 0) p.row_weights[row] = weight;
        }
        ring.Take();
        for (unsigned rows = __ballot_sync(kAllLanes, row >= 0); rows != 0; rows &= rows - 1) {
          const int64_t to = __shfl_sync(kAllLanes, row, __ffs(rows) - 1);
          ring.Store(p.rows + to * s.hidden);
        }
        ring.Release();
      });
  FinishRound(view, DispatchKind::kDispatchExpand, DispatchSignal::kRecordsConsumed, round);
}

template <class Params>
cudaError_t LaunchRows(void (*kernel)(DispatchView, Params), const DispatchView& view,
                       const Params& p, int blocks, cudaStream_t stream) {
  const int warps = RowWarps(p.group.shape.hidden);
  const int shared_bytes = warps * kRowBuffers * 2 * p.group.shape.hidden;
  kernel<<<blocks, 32 * warps, shared_bytes, stream>>>(view, p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t DispatchPush(const DispatchPushParams& p, cudaStream_t stream) {
  if (!IsSupported(p.group, p.plan) || p.blocks < 1) return cudaErrorInvalidValue;
  if (p.weights != nullptr && !p.headers) return cudaErrorInvalidValue;
  const DispatchView view{p.group, DispatchArenaLayout(p.group.shape)};
  const cudaError_t error =
      LaunchWait(view, DispatchKind::kDispatchPush, DispatchSignal::kRecordsConsumed, 2,
                 DispatchPhase::kDispatchRoom, p.layer, stream);
  if (error != cudaSuccess) return error;
  return LaunchRows(&PushKernel, view, p, p.blocks, stream);
}

cudaError_t DispatchExpand(const DispatchExpandParams& p, cudaStream_t stream) {
  if (!IsSupported(p.group, p.plan) || p.blocks < 0) return cudaErrorInvalidValue;
  if (p.plan.tokens > 0 && (p.weights == nullptr) != (p.row_weights == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (p.row_weights != nullptr && !p.headers) return cudaErrorInvalidValue;
  const DispatchView view{p.group, DispatchArenaLayout(p.group.shape)};
  const cudaError_t error =
      LaunchWait(view, DispatchKind::kDispatchExpand, DispatchSignal::kRecordsArrived, 0,
                 DispatchPhase::kDispatchArrival, p.layer, stream);
  if (error != cudaSuccess) return error;
  return LaunchRows(&ExpandKernel, view, p, p.blocks > 0 ? p.blocks : NumSms(), stream);
}

cudaError_t LoadPushKernels() {
  for (const void* kernel :
       {reinterpret_cast<const void*>(&PushKernel), reinterpret_cast<const void*>(&ExpandKernel)}) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kRowSharedBytes);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace switchyard::kernels
