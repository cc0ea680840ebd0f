// What the dispatch kernels share: the tables of a plan, control words, waiting, and rows that pass
// through shared memory by bulk copies.
#ifndef SWITCHYARD_KERNELS_DISPATCH_PROTOCOL_CUH_
#define SWITCHYARD_KERNELS_DISPATCH_PROTOCOL_CUH_

#include <cutlass/arch/barrier.h>

#include <algorithm>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "kernels/dispatch/dispatch.h"
#include "kernels/dispatch/layout.h"

namespace switchyard::kernels {

constexpr unsigned kAllLanes = 0xffffffffu;

// ---- control words ----

__device__ __forceinline__ uint64_t LoadAcquireSystem(const uint64_t* cell) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(cell) : "memory");
  return value;
}
__device__ __forceinline__ uint64_t LoadRelaxedSystem(const uint64_t* cell) {
  uint64_t value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(cell) : "memory");
  return value;
}
__device__ __forceinline__ uint32_t LoadRelaxedSystem(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
__device__ __forceinline__ void StoreReleaseSystem(uint64_t* cell, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(cell), "l"(value) : "memory");
}
__device__ __forceinline__ void StoreRelaxedSystem(uint64_t* cell, uint64_t value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(cell), "l"(value) : "memory");
}
__device__ __forceinline__ void StoreRelaxedSystem(uint32_t* word, uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
__device__ __forceinline__ uint64_t NowNanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__device__ __forceinline__ uint64_t Cell(uint32_t tag, uint32_t value) {
  return uint64_t{tag} << 32 | value;
}
__device__ __forceinline__ uint32_t CellTag(uint64_t cell) {
  return static_cast<uint32_t>(cell >> 32);
}

// The group as kernels see it: with the layout of the arenas.
struct DispatchView {
  DispatchGroup group;
  DispatchArena arena;

  __device__ DispatchState* State(int rank) const {
    return reinterpret_cast<DispatchState*>(group.arenas[rank] + arena.state);
  }
  // Where `sender` signals to `owner`.
  __device__ uint64_t* Signal(int owner, DispatchSignal signal, int sender) const {
    return reinterpret_cast<uint64_t*>(group.arenas[owner] + arena.signals) +
           static_cast<int>(signal) * group.shape.ranks + sender;
  }
  __device__ Bf16* Record(int owner, int parity, int64_t record) const {
    return reinterpret_cast<Bf16*>(group.arenas[owner] + arena.records) +
           (parity * MaxDispatchRecords(group.shape) + record) * group.shape.hidden;
  }
  __device__ int32_t* Header(int owner, int parity, int64_t record) const {
    return reinterpret_cast<int32_t*>(group.arenas[owner] + arena.headers) +
           (parity * MaxDispatchRecords(group.shape) + record) * 2 *
               DispatchHeaderSlots(group.shape);
  }
  __device__ Bf16* Sum(int owner, int parity, int64_t sum) const {
    return reinterpret_cast<Bf16*>(group.arenas[owner] + arena.sums) +
           (parity * MaxDispatchSums(group.shape) + sum) * group.shape.hidden;
  }
  __device__ float* WeightSums(int owner, int parity, int64_t sum) const {
    return reinterpret_cast<float*>(group.arenas[owner] + arena.weight_sums) +
           (parity * MaxDispatchSums(group.shape) + sum) * DispatchHeaderSlots(group.shape);
  }
  __device__ bool Aborted() const { return LoadRelaxedSystem(&State(group.rank)->abort) != 0; }
};

// Notes the first failure of this rank and tells all peers.
__device__ inline void Fail(const DispatchView& view, DispatchFailure failure, int peer,
                            DispatchPhase phase, int layer, uint32_t round) {
  const DispatchGroup& group = view.group;
  DispatchState* const state = view.State(group.rank);
  if (atomicCAS(&state->reported, 0u, 1u) != 0) return;
  if (failure == DispatchFailure::kTimeout) {
    for (int p = 0; p < group.shape.ranks; ++p) {
      StoreRelaxedSystem(&view.State(p)->abort, 1u + group.rank);
    }
  }
  volatile DispatchError* const error = group.error;
  error->rank = group.rank;
  error->peer = peer;
  error->phase = phase;
  error->layer = layer;
  error->round = round;
  __threadfence_system();
  error->failure = failure;
}

// Polls until `done()`. False: it took too long or a peer has given up; noted.
template <class Done>
__device__ bool Poll(const DispatchView& view, int peer, DispatchPhase phase, int layer,
                     uint32_t round, Done done) {
  const uint64_t start = NowNanoseconds();
  while (!done()) {
    const uint32_t abort = LoadRelaxedSystem(&view.State(view.group.rank)->abort);
    if (abort != 0) {
      Fail(view, DispatchFailure::kPeerAborted, static_cast<int>(abort) - 1, phase, layer, round);
      return false;
    }
    if (NowNanoseconds() - start > view.group.timeout_ns) {
      Fail(view, DispatchFailure::kTimeout, peer, phase, layer, round);
      return false;
    }
  }
  return true;
}

// Waits, in a kernel of one warp, until every peer has sent `signal` for this rank's next round of
// `kind`, less `lag`. The kernel that follows on the stream then sees what they wrote before it.
cudaError_t LaunchWait(const DispatchView& view, DispatchKind kind, DispatchSignal signal,
                       uint32_t lag, DispatchPhase phase, int layer, cudaStream_t stream);

// The round of a working kernel. All threads call it before they finish.
__device__ __forceinline__ uint32_t NextRound(const DispatchView& view, DispatchKind kind) {
  return view.State(view.group.rank)->rounds[static_cast<int>(kind)] + 1;
}

// True in all threads of the block that gets here last of the grid; it sees what all blocks wrote.
// All threads of every block call it, once.
__device__ inline bool IsLastBlock(const DispatchView& view, DispatchKind kind) {
  __shared__ bool last;
  uint32_t* const ticket = &view.State(view.group.rank)->tickets[static_cast<int>(kind)];
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence_system();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    __threadfence_system();
  }
  __syncthreads();
  return last;
}

// Ends a working kernel: its last block tells every peer, and starts the next round. Every thread
// of the block calls it when its own work is complete: bulk stores too (FinishBulkStores).
__device__ inline void FinishRound(const DispatchView& view, DispatchKind kind,
                                   DispatchSignal signal, uint32_t round) {
  if (!IsLastBlock(view, kind)) return;
  const int peer = threadIdx.x;
  if (peer < view.group.shape.ranks && peer != view.group.rank) {
    StoreReleaseSystem(view.Signal(peer, signal, view.group.rank), Cell(round, 0));
  }
  if (threadIdx.x == 0) {
    view.State(view.group.rank)->rounds[static_cast<int>(kind)] = round;
  }
}

// ---- rows through shared memory ----

using RowBarrier = cutlass::arch::ClusterTransactionBarrier;

// Waits until this thread's bulk stores have been written, and orders what follows after them.
__device__ __forceinline__ void FinishBulkStores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}

constexpr int kRowBuffers = 4;
constexpr int kRowsAhead = 2;
constexpr int kMaxRowWarps = 14;
constexpr int kRowSharedBytes = 224 * 1024;

// Warps of a block whose rows fill its shared memory.
inline int RowWarps(int hidden) {
  return std::min(kMaxRowWarps, kRowSharedBytes / (kRowBuffers * 2 * hidden));
}

// One warp's ring of rows: loaded ahead, taken in order, stored from where they lie. Lane 0 issues
// all copies; all lanes call.
class RowRing {
 public:
  // `rows`: shared memory of the block, [warps, kRowBuffers, row bytes] on 128 bytes.
  __device__ RowRing(uint8_t* rows, uint64_t (*arrived)[kRowBuffers], int row_bytes)
      : row_bytes_(row_bytes),
        rows_(rows + threadIdx.x / 32 * kRowBuffers * row_bytes),
        arrived_(arrived[threadIdx.x / 32]) {
    if (IsIssuer()) {
      for (int i = 0; i < kRowBuffers; ++i) RowBarrier::init(&arrived_[i], 1);
      cutlass::arch::fence_barrier_init();
    }
    __syncwarp();
  }

  __device__ static bool IsIssuer() { return threadIdx.x % 32 == 0; }

  // Starts to load a row. At most kRowsAhead loaded rows are not yet taken and one is being stored.
  __device__ void Load(const Bf16* row) {
    if (IsIssuer()) {
      // The buffer's last row was released at least two groups ago.
      cute::tma_store_wait<kRowBuffers - kRowsAhead - 1>();
      const int buffer = loaded_ % kRowBuffers;
      RowBarrier::arrive_and_expect_tx(&arrived_[buffer], row_bytes_);
      cute::SM90_BULK_COPY_G2S::copy(row, &arrived_[buffer], rows_ + buffer * row_bytes_,
                                     row_bytes_);
    }
    ++loaded_;
  }
  // Waits for the oldest row not yet taken.
  __device__ void Take() {
    RowBarrier::wait(&arrived_[taken_ % kRowBuffers], taken_ / kRowBuffers % 2);
  }
  // Stores the row just taken.
  __device__ void Store(Bf16* to) {
    if (IsIssuer()) {
      cute::SM90_BULK_COPY_S2G::copy(rows_ + taken_ % kRowBuffers * row_bytes_, to, row_bytes_);
    }
  }
  // No more stores of this row.
  __device__ void Release() {
    if (IsIssuer()) cute::tma_store_arrive();
    ++taken_;
  }
  __device__ void Finish() {
    if (IsIssuer()) FinishBulkStores();
  }

 private:
  int row_bytes_;
  uint8_t* rows_;
  uint64_t* arrived_;
  uint32_t loaded_ = 0, taken_ = 0;
};

// All warps of the grid together pass over the items [0, count) for which `exists` holds: `source`
// is the item's row, `use` stores it, between ring.Take() and ring.Release().
template <class Exists, class Source, class Use>
__device__ void StreamRows(RowRing& ring, int64_t count, Exists exists, Source source, Use use) {
  const int warps_per_block = blockDim.x / 32;
  const int64_t warps = int64_t{gridDim.x} * warps_per_block;
  // Neighbours in different blocks: the blocks' shares differ by one row at most.
  const int64_t warp = int64_t{threadIdx.x / 32} * gridDim.x + blockIdx.x;
  for (int64_t first = warp; first < count; first += 32 * warps) {
    const int64_t mine = first + threadIdx.x % 32 * warps;
    unsigned items = __ballot_sync(kAllLanes, mine < count && exists(mine));
    unsigned unloaded = items;
    const auto load_next = [&] {
      if (unloaded == 0) return;
      ring.Load(source(first + (__ffs(unloaded) - 1) * warps));
      unloaded &= unloaded - 1;
    };
    for (int i = 0; i < kRowsAhead; ++i) load_next();
    for (; items != 0; items &= items - 1) {
      load_next();
      use(first + (__ffs(items) - 1) * warps);
    }
  }
  ring.Finish();
}

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_DISPATCH_PROTOCOL_CUH_
