// The one grouped matrix product kernel; grouped_gemm*.cu instantiate it.
//
// A persistent cluster of two blocks walks the schedule. In each block one thread feeds a ring of
// 48 KB stages by TMA; two warpgroups each multiply 64 rows by 256 columns with wgmma and then
// run the epilogue. Where both blocks read the same weight tile each loads one half of it and
// multicasts, which cuts the traffic from L2 by a third; because a stage is then written by both
// blocks, a consumer frees it in both. A warpgroup whose 64 rows do not exist skips its products: a
// ragged tail costs half.
#ifndef SWITCHYARD_KERNELS_GROUPED_GEMM_KERNEL_CUH_
#define SWITCHYARD_KERNELS_GROUPED_GEMM_KERNEL_CUH_

#include <cuda.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>
#include <type_traits>

#include "kernels/common/launch.h"
#include "kernels/common/tensor_map.h"
#include "kernels/grouped_gemm/epilogue.cuh"
#include "kernels/grouped_gemm/schedule.cuh"

namespace switchyard::kernels::grouped_gemm {

enum class Product {
  kLinear,      // a [rows, k] times b [n, k]
  kSwiGlu,      // the same with gate and up rows in one tile, SwiGLU behind
  kLinearGrad,  // a [rows, k] times b [k, n]
  kDownGrad,    // the same with the SwiGLU gradient behind
  kWeightGrad,  // a^T b over an expert's rows
};

constexpr int kBytesA = kTileM * kTileK * 2;
constexpr int kBytesB = kTileN * kTileK * 2;
constexpr int kStageBytes = kBytesA + kBytesB;
constexpr int kConsumerWarps = 8;
constexpr int kThreads = 128 + 32 * kConsumerWarps;

template <Product kProduct>
struct SharedStorage {
  // The down gradient's epilogue needs room for z.
  static constexpr bool kReadsPairs = kProduct == Product::kDownGrad;
  static constexpr int kStages = kReadsPairs ? 3 : 4;
  static constexpr int kBlocks = kReadsPairs ? 2 * PairReader::kSlots + 1 : 2;

  alignas(1024) uint8_t stages[kStages * kStageBytes];
  alignas(1024) Bf16 staging[kConsumerWarps][kBlocks * kChunkElements];
  alignas(8) uint64_t full[kStages];
  alignas(8) uint64_t empty[kStages];
  alignas(8) uint64_t pairs[kConsumerWarps][PairReader::kSlots];  // where kReadsPairs
  int tile_start[kMaxExperts + 1];
};
static_assert(sizeof(SharedStorage<Product::kLinear>) <= 232448 &&
                  sizeof(SharedStorage<Product::kDownGrad>) <= 232448,
              "more shared memory than a block of sm_90 has");

struct KernelParams {
  const int32_t* offsets;
  int64_t max_rows;
  int experts;
  int k;            // reduction length; not used by kWeightGrad
  int k_per_split;  // the part that one tile sums, a multiple of kTileK; k: all of it
  int m;            // rows of one expert's gradient; kWeightGrad only
  int n;            // output columns; kSwiGlu, kDownGrad: ffn
  int columns;      // column tiles
  bool accumulate;
  void* out;
  SwiGluOut swiglu;
  SwiGluGradOut swiglu_grad;
};

// Where finished tiles go by bulk copy, in boxes of 128 bytes by 16 rows; unused ones stay zero.
struct OutputMaps {
  CUtensorMap first;   // kSwiGlu: z; kDownGrad: dz
  CUtensorMap second;  // kSwiGlu, kDownGrad: h
  CUtensorMap z;       // kDownGrad: read, in the same boxes
};

using Barrier = cutlass::arch::ClusterBarrier;
using TransactionBarrier = cutlass::arch::ClusterTransactionBarrier;

// Position in the ring; `phase` flips at each turn.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

template <Product kProduct>
struct Operands {
  static constexpr bool kSwiGlu = kProduct == Product::kSwiGlu;
  static constexpr bool kWeight = kProduct == Product::kWeightGrad;
  // Whether the reduction is the contiguous dim of the operand.
  static constexpr bool kContiguousA = !kWeight;
  static constexpr bool kContiguousB = kProduct == Product::kLinear || kSwiGlu;
  static constexpr auto kMajorA = kContiguousA ? cute::GMMA::Major::K : cute::GMMA::Major::MN;
  static constexpr auto kMajorB = kContiguousB ? cute::GMMA::Major::K : cute::GMMA::Major::MN;
  using Element = cute::bfloat16_t;
  using Schedule = std::conditional_t<kWeight, WeightSchedule, RowSchedule>;
  using Mma =
      decltype(cute::make_tiled_mma(cute::SM90_64x256x16_F32BF16BF16_SS<kMajorA, kMajorB>{}));
  using AtomA = std::conditional_t<kContiguousA, cute::GMMA::Layout_K_SW128_Atom<Element>,
                                   cute::GMMA::Layout_MN_SW128_Atom<Element>>;
  using AtomB = std::conditional_t<kContiguousB, cute::GMMA::Layout_K_SW128_Atom<Element>,
                                   cute::GMMA::Layout_MN_SW128_Atom<Element>>;
  // One warpgroup's half of A (8 KB either way) and the whole of B, as the boxes below lay them
  // down.
  using LayoutA = decltype(cute::tile_to_shape(AtomA{}, cute::Shape<cute::_64, cute::_64>{}));
  using OrderB = std::conditional_t<kContiguousB, cute::Step<cute::_1, cute::_2>,
                                    cute::Step<cute::_2, cute::_1>>;
  using LayoutB =
      decltype(cute::tile_to_shape(AtomB{}, cute::Shape<cute::_256, cute::_64>{}, OrderB{}));
};

constexpr uint64_t kKeep = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);

// Loads half `half` of the B tile to `target` (16 KB), to this block or to both.
template <Product kProduct>
__device__ __forceinline__ void LoadHalfB(const CUtensorMap* map, uint64_t* barrier,
                                          uint8_t* target, const Tile& tile, int k, int half,
                                          bool both) {
  using Ops = Operands<kProduct>;
  constexpr uint16_t kBoth = 3;
  if constexpr (Ops::kSwiGlu) {
    const int column = tile.column * (kTileN / 2);
    if (both) {
      cute::SM90_TMA_LOAD_MULTICAST_4D::copy(map, barrier, kBoth, kKeep, target, k, column, half,
                                             tile.expert);
    } else {
      cute::SM90_TMA_LOAD_4D::copy(map, barrier, kKeep, target, k, column, half, tile.expert);
    }
  } else if constexpr (Ops::kContiguousB) {
    const int column = tile.column * kTileN + half * (kTileN / 2);
    if (both) {
      cute::SM90_TMA_LOAD_MULTICAST_3D::copy(map, barrier, kBoth, kKeep, target, k, column,
                                             tile.expert);
    } else {
      cute::SM90_TMA_LOAD_3D::copy(map, barrier, kKeep, target, k, column, tile.expert);
    }
  } else {
    // Token rows have no expert dim; weights do.
    const int slab = Ops::kWeight ? 0 : tile.expert;
#pragma unroll
    for (int box = 0; box < 2; ++box) {
      const int column = tile.column * kTileN + half * (kTileN / 2) + box * 64;
      uint8_t* to = target + box * 64 * kTileK * 2;
      if (both) {
        cute::SM90_TMA_LOAD_MULTICAST_3D::copy(map, barrier, kBoth, kKeep, to, column, k, slab);
      } else {
        cute::SM90_TMA_LOAD_3D::copy(map, barrier, kKeep, to, column, k, slab);
      }
    }
  }
}

template <Product kProduct>
__device__ __forceinline__ void LoadA(const CUtensorMap* map, uint64_t* barrier, uint8_t* target,
                                      const Tile& tile, int k) {
  if constexpr (Operands<kProduct>::kContiguousA) {
    cute::SM90_TMA_LOAD_2D::copy(map, barrier, kKeep, target, k, tile.row0);
  } else {
#pragma unroll
    for (int box = 0; box < 2; ++box) {
      cute::SM90_TMA_LOAD_2D::copy(map, barrier, kKeep, target + box * 64 * kTileK * 2,
                                   tile.row0 + box * 64, k);
    }
  }
}

template <Product kProduct, class Schedule>
__device__ __forceinline__ void Produce(const CUtensorMap* map_a, const CUtensorMap* map_b,
                                        SharedStorage<kProduct>& shared, Schedule schedule) {
  const int rank = blockIdx.x % 2;
  RingPosition<SharedStorage<kProduct>::kStages> ring;
  Tile tile;
  while (schedule.Next(&tile)) {
    for (int k = 0; k < tile.k_size; k += kTileK) {
      Barrier::wait(&shared.empty[ring.stage], ring.phase ^ 1);
      uint64_t* full = &shared.full[ring.stage];
      uint8_t* a = shared.stages + ring.stage * kStageBytes;
      uint8_t* b = a + kBytesA;
      TransactionBarrier::arrive_and_expect_tx(full, kStageBytes);
      LoadA<kProduct>(map_a, full, a, tile, tile.k_begin + k);
      if (tile.shared_b) {
        LoadHalfB<kProduct>(map_b, full, b + rank * (kBytesB / 2), tile, tile.k_begin + k, rank,
                            true);
      } else {
        LoadHalfB<kProduct>(map_b, full, b, tile, tile.k_begin + k, 0, false);
        LoadHalfB<kProduct>(map_b, full, b + kBytesB / 2, tile, tile.k_begin + k, 1, false);
      }
      ring.Advance();
    }
  }
}

// Tells both blocks of the cluster that this warp has read stage `stage`.
template <class Shared>
__device__ __forceinline__ void ReleaseStage(Shared& shared, int stage) {
  const uint32_t lane = threadIdx.x % 32;
  Barrier::arrive(&shared.empty[stage], lane & 1, lane < 2);
}

// The last block of a ragged reduction holds the next expert's rows, or rows nobody wrote: zero
// both operands from `valid` on (a NaN times zero is a NaN). Two warpgroups (`both`) clear half of
// B each and wait for each other; one that works alone clears all of it.
__device__ __forceinline__ void ZeroTail(uint8_t* half_a, uint8_t* b, int valid, int warpgroup,
                                         bool both) {
  constexpr int kBoxes = kTileN / 64;
  constexpr int kRowWords = 128 / 16;
  const int thread = threadIdx.x % 128;
  const int words = (kTileK - valid) * kRowWords;
  auto clear = [&](uint8_t* box) {
    uint4* from = reinterpret_cast<uint4*>(box) + valid * kRowWords;
    for (int i = thread; i < words; i += 128) from[i] = make_uint4(0, 0, 0, 0);
  };
  clear(half_a);
  const int first = both ? warpgroup * kBoxes / 2 : 0;
  const int last = both ? first + kBoxes / 2 : kBoxes;
  for (int box = first; box < last; ++box) clear(b + box * 64 * kTileK * 2);
  cutlass::arch::fence_view_async_shared();
  cutlass::arch::NamedBarrier::sync(both ? 256 : 128, 1);
}

template <Product kProduct, class Out, class Accumulators>
__device__ __forceinline__ void Finish(const OutputMaps& maps, const KernelParams& p,
                                       const Accumulators& acc, BulkWriter& writer,
                                       PairReader& reader, const Tile& tile, int warp_row) {
  const WarpRows rows{int64_t{tile.row0} + warp_row, tile.rows - warp_row};
  if (rows.rows <= 0) return;
  const int column = tile.column * kTileN;
  if constexpr (kProduct == Product::kSwiGlu) {
    SwiGluTile(acc, writer, &maps.first, &maps.second, p.swiglu, rows, tile.column * (kTileN / 2));
  } else if constexpr (kProduct == Product::kDownGrad) {
    SwiGluGradOut out = p.swiglu_grad;
    if (out.dp_partial != nullptr) out.dp_partial += tile.column * p.max_rows;
    SwiGluGradTile(acc, writer, reader, &maps.z, &maps.first, &maps.second, out, rows, column);
  } else if constexpr (std::is_same_v<Out, float>) {
    // Weight gradients by expert; the splits of a plain product.
    const int slab = kProduct == Product::kWeightGrad ? tile.expert : tile.split;
    if (p.accumulate) {
      StoreSlabFloat<true>(acc, writer, &maps.first, column, tile.row0 + warp_row, slab);
    } else {
      StoreSlabFloat<false>(acc, writer, &maps.first, column, tile.row0 + warp_row, slab);
    }
  } else if constexpr (kProduct == Product::kWeightGrad) {
    if (p.accumulate) {
      StoreSlabBf16<true>(acc, writer, &maps.first, column, tile.row0 + warp_row, tile.expert);
    } else {
      StoreSlabBf16<false>(acc, writer, &maps.first, column, tile.row0 + warp_row, tile.expert);
    }
  } else {
    StoreTile(acc, writer, &maps.first, static_cast<Bf16*>(p.out), p.n, rows, column, p.n);
  }
}

template <Product kProduct, class Out, class Schedule>
__device__ __forceinline__ void Consume(const OutputMaps& maps, const KernelParams& p,
                                        SharedStorage<kProduct>& shared, Schedule schedule) {
  using Ops = Operands<kProduct>;
  using Element = typename Ops::Element;
  const int warpgroup = threadIdx.x / 128 - 1;
  const int warp = threadIdx.x / 32 - 4;
  typename Ops::Mma mma;
  auto thread_mma = mma.get_thread_slice(threadIdx.x % 128);
  auto acc = cute::partition_fragment_C(mma, cute::Shape<cute::_64, cute::_256>{});
  static_assert(decltype(cute::size(acc))::value == 128);

  auto half_a = [&](int stage) {
    return shared.stages + stage * kStageBytes + warpgroup * (kBytesA / 2);
  };
  auto whole_b = [&](int stage) { return shared.stages + stage * kStageBytes + kBytesA; };
  auto multiply = [&](int stage) {
    auto a = cute::make_tensor(cute::make_smem_ptr(reinterpret_cast<Element*>(half_a(stage))),
                               typename Ops::LayoutA{});
    auto b = cute::make_tensor(cute::make_smem_ptr(reinterpret_cast<Element*>(whole_b(stage))),
                               typename Ops::LayoutB{});
    auto fragment_a = thread_mma.partition_fragment_A(a);
    auto fragment_b = thread_mma.partition_fragment_B(b);
    cute::warpgroup_arrive();
#pragma unroll
    for (int i = 0; i < kTileK / 16; ++i) {
      cute::gemm(mma, fragment_a(cute::_, cute::_, i), fragment_b(cute::_, cute::_, i), acc);
      mma.accumulate_ = cute::GMMA::ScaleOut::One;
    }
    cute::warpgroup_commit_batch();
  };

  BulkWriter writer(shared.staging[warp]);
  PairReader reader(writer, shared.pairs[warp]);
  RingPosition<SharedStorage<kProduct>::kStages> ring;
  const int warp_row = 64 * warpgroup + 16 * (warp % 4);
  Tile tile;
  while (schedule.Next(&tile)) {
    const int blocks = (tile.k_size + kTileK - 1) / kTileK;
    if (tile.rows <= 64 * warpgroup) {
      for (int i = 0; i < blocks; ++i, ring.Advance()) {
        Barrier::wait(&shared.full[ring.stage], ring.phase);
        ReleaseStage(shared, ring.stage);
      }
      continue;
    }
    if constexpr (kProduct == Product::kDownGrad) {
      if (tile.rows > warp_row) {
        RequestFirstChunks(writer, reader, &maps.z, int64_t{tile.row0} + warp_row,
                           tile.column * kTileN);
      }
    }
    mma.accumulate_ = cute::GMMA::ScaleOut::Zero;
    if (Ops::kWeight && blocks == 0) cute::clear(acc);
    cute::warpgroup_fence_operand(acc);
    int previous = -1;
    for (int i = 0; i < blocks; ++i, ring.Advance()) {
      Barrier::wait(&shared.full[ring.stage], ring.phase);
      if constexpr (Ops::kWeight) {
        // Only the weight gradient's reduction ends anywhere; elsewhere TMA fills with zeros.
        const int valid = tile.k_size - i * kTileK;
        if (valid < kTileK) {
          ZeroTail(half_a(ring.stage), whole_b(ring.stage), valid, warpgroup, tile.rows > 64);
        }
      }
      multiply(ring.stage);
      cute::warpgroup_wait<1>();
      if (previous >= 0) ReleaseStage(shared, previous);
      previous = ring.stage;
    }
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(acc);
    if (previous >= 0) ReleaseStage(shared, previous);
    Finish<kProduct, Out>(maps, p, acc, writer, reader, tile, warp_row);
  }
  writer.Finish();
}

template <Product kProduct, class Out>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    GroupedKernel(const __grid_constant__ CUtensorMap map_a,
                  const __grid_constant__ CUtensorMap map_b,
                  const __grid_constant__ OutputMaps maps, const __grid_constant__ KernelParams p) {
  extern __shared__ __align__(1024) uint8_t dynamic_shared[];
  using Shared = SharedStorage<kProduct>;
  Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared);
  using Schedule = typename Operands<kProduct>::Schedule;

  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared::kStages; ++i) {
      Barrier::init(&shared.full[i], 1);
      Barrier::init(&shared.empty[i], 2 * kConsumerWarps);
    }
    if constexpr (Shared::kReadsPairs) {
      for (auto& of_warp : shared.pairs) {
        for (uint64_t& barrier : of_warp) Barrier::init(&barrier, 1);
      }
    }
    cutlass::arch::fence_barrier_init();
    cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(&map_a));
    cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(&map_b));
  }
  if constexpr (kProduct != Product::kWeightGrad) {
    if (threadIdx.x / 32 == 1) BuildTileTable(p.offsets, p.max_rows, p.experts, shared.tile_start);
  }
  __syncthreads();
  cute::cluster_arrive_relaxed();
  cute::cluster_wait();

  auto make_schedule = [&] {
    if constexpr (kProduct == Product::kWeightGrad) {
      return Schedule(p.offsets, p.max_rows, p.experts, p.columns, p.m);
    } else {
      return Schedule(p.offsets, p.max_rows, p.experts, p.columns, p.k, p.k_per_split,
                      shared.tile_start);
    }
  };
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    if (threadIdx.x == 0) Produce<kProduct>(&map_a, &map_b, shared, make_schedule());
    __syncwarp();
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    Consume<kProduct, Out>(maps, p, shared, make_schedule());
  }
  // The peer may still free stages here, so neither block leaves first.
  cute::cluster_arrive();
  cute::cluster_wait();
}

template <Product kProduct, class Out>
cudaError_t Launch(const CUtensorMap& map_a, const CUtensorMap& map_b, const OutputMaps& maps,
                   const KernelParams& p, int num_sms, cudaStream_t stream) {
  auto* kernel = &GroupedKernel<kProduct, Out>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(SharedStorage<kProduct>));
  if (error != cudaSuccess) return error;
  const int available = NumSms();
  const int limit = num_sms > 0 && num_sms < available ? num_sms : available;
  const int blocks = limit < 2 ? 2 : limit / 2 * 2;
  kernel<<<blocks, kThreads, sizeof(SharedStorage<kProduct>), stream>>>(map_a, map_b, maps, p);
  return cudaGetLastError();
}

inline bool DimsAreSupported(int experts, int64_t max_rows, std::initializer_list<int> dims) {
  for (const int dim : dims) {
    if (dim <= 0 || dim % 8 != 0) return false;
  }
  return experts >= 1 && experts <= kMaxExperts && max_rows >= 0 &&
         max_rows < (int64_t{1} << 31) - 256;
}

}  // namespace switchyard::kernels::grouped_gemm

#endif  // SWITCHYARD_KERNELS_GROUPED_GEMM_KERNEL_CUH_
