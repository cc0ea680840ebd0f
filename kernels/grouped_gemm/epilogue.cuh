// What happens to a finished tile. Every warp works alone on its 16 rows: accumulators go through a
// private, swizzled 4 KB of shared memory, so that global memory sees 16 bytes per lane and 128
// contiguous bytes per row, and no barrier is wider than a warp.
//
// Accumulator layout of wgmma m64n256 per thread: value 4 * j + 2 * h + c is row lane / 4 + 8 * h,
// column 8 * j + 2 * (lane % 4) + c. A chunk is 64 columns: 32 values, one 16 x 64 block per warp.
#ifndef SWITCHYARD_KERNELS_GROUPED_GEMM_EPILOGUE_CUH_
#define SWITCHYARD_KERNELS_GROUPED_GEMM_EPILOGUE_CUH_

#include <cuda.h>
#include <cutlass/arch/barrier.h>

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm90.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "kernels/common/reduce.cuh"
#include "kernels/common/vec.cuh"

namespace switchyard::kernels::grouped_gemm {

constexpr int kChunk = 64;
constexpr int kChunkValues = 32;
constexpr int kChunkElements = 16 * kChunk;  // one warp's block, 2 KB

// A warp's 16 rows of the output: `row0` is the first, `rows` how many of them may be written.
struct WarpRows {
  int64_t row0;
  int rows;
};

__device__ __forceinline__ Bf16* Swizzled(Bf16* buffer, int row, int block) {
  return buffer + row * kChunk + ((block ^ (row & 7)) * 8);
}

// Where lane's address for matrix lane / 8 of an x4 ldmatrix or stmatrix over column blocks 2j,
// 2j+1.
__device__ __forceinline__ Bf16* MatrixAddress(Bf16* buffer, int j) {
  const int lane = threadIdx.x % 32;
  return Swizzled(buffer, (lane & 7) + ((lane >> 3) & 1) * 8, 2 * j + (lane >> 4));
}

// Values 8j to 8j + 7 of a chunk, and back to where they were.
__device__ __forceinline__ void LoadPiece(Bf16* buffer, int j, float (&v)[8]) {
  uint32_t r[4];
  cute::SM75_U32x4_LDSM_N::copy(*reinterpret_cast<const cute::uint128_t*>(MatrixAddress(buffer, j)),
                                r[0], r[1], r[2], r[3]);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = LowBf16(r[i]);
    v[2 * i + 1] = HighBf16(r[i]);
  }
}
__device__ __forceinline__ void StorePiece(Bf16* buffer, int j, const uint32_t (&r)[4]) {
  cute::SM90_U32x4_STSM_N::copy(r[0], r[1], r[2], r[3],
                                *reinterpret_cast<cute::uint128_t*>(MatrixAddress(buffer, j)));
}
__device__ __forceinline__ void StorePiece(Bf16* buffer, int j, const float (&v)[8]) {
  const uint32_t r[4] = {PackBf16(v[0], v[1]), PackBf16(v[2], v[3]), PackBf16(v[4], v[5]),
                         PackBf16(v[6], v[7])};
  StorePiece(buffer, j, r);
}

__device__ __forceinline__ void StageChunk(Bf16* buffer, const float (&v)[kChunkValues]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float piece[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) piece[i] = v[8 * j + i];
    StorePiece(buffer, j, piece);
  }
}

// Shared block -> out[row0 + r, column + c], leading dim `ld`, for rows and columns that exist.
__device__ __forceinline__ void WriteChunk(Bf16* buffer, Bf16* out, int64_t ld,
                                           const WarpRows& rows, int column, int end_column) {
  const int lane = threadIdx.x % 32;
  const int block = lane % 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = 4 * i + lane / 8;
    if (row >= rows.rows || column + 8 * block >= end_column) continue;
    StoreWords(out + (rows.row0 + row) * ld + column + 8 * block,
               LoadWords(Swizzled(buffer, row, block)));
  }
}

// A warp's first two 2 KB blocks of shared memory, sent off in turn by bulk copies (TMA) that run
// while the warp goes on. Kept across tiles.
class BulkWriter {
 public:
  __device__ explicit BulkWriter(Bf16* staging) : staging_(staging) {}

  // The next block, once its last copy has read it.
  __device__ __forceinline__ Bf16* Next() {
    if (threadIdx.x % 32 == 0) cute::tma_store_wait<1>();
    __syncwarp();
    turn_ ^= 1;
    return Block(turn_);
  }
  __device__ __forceinline__ Bf16* Block(int index) const {
    return staging_ + index * kChunkElements;
  }
  // Sends a block: a box of 128 bytes by 16 rows to (x, y, z) of the map's tensor, clipped to it.
  // kAdd: adds at L2; every element gets one addition, so the result is deterministic.
  template <bool kAdd = false>
  __device__ __forceinline__ void Send(const CUtensorMap* map, const void* block, int x, int y,
                                       int z) {
    cutlass::arch::fence_view_async_shared();
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      if constexpr (kAdd) {
        cute::SM90_TMA_REDUCE_ADD_3D::copy(map, block, x, y, z);
      } else {
        cute::SM90_TMA_STORE_3D::copy(map, block, x, y, z);
      }
      cute::tma_store_arrive();
    }
  }
  // All blocks have been read. Also before the thread block ends: its shared memory must outlive
  // the copies.
  __device__ __forceinline__ void Finish() {
    if (threadIdx.x % 32 == 0) cute::tma_store_wait<0>();
    __syncwarp();
  }

 private:
  Bf16* staging_;
  int turn_ = 0;
};

// z of a warp's rows on its way to shared memory by bulk copies: gate and up of one chunk in blocks
// 2 * slot and 2 * slot + 1, where the epilogue turns them into dz. Two chunks are under way at a
// time. Kept across tiles.
class PairReader {
 public:
  static constexpr int kSlots = 2;

  // `full`: kSlots barriers of this warp, each for one arrival.
  __device__ PairReader(BulkWriter& writer, uint64_t* full) : writer_(writer), full_(full) {}

  // Dims of the map: ffn, 2, rows; what lies outside it comes as zeros. The slot's blocks are free:
  // whatever was sent from them has been read (BulkWriter::Finish).
  __device__ __forceinline__ void Request(const CUtensorMap* map, int slot, int column, int row) {
    cutlass::arch::fence_view_async_shared();
    __syncwarp();
    if (threadIdx.x % 32 != 0) return;
    constexpr auto kHint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST);
    cutlass::arch::ClusterTransactionBarrier::arrive_and_expect_tx(&full_[slot],
                                                                   2 * kChunkElements * 2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      cute::SM90_TMA_LOAD_3D::copy(map, &full_[slot], kHint, writer_.Block(2 * slot + half), column,
                                   half, row);
    }
  }
  __device__ __forceinline__ void Await(int slot) {
    cutlass::arch::ClusterBarrier::wait(&full_[slot], (phases_ >> slot) & 1);
    phases_ ^= 1u << slot;
  }

 private:
  BulkWriter& writer_;
  uint64_t* full_;
  uint32_t phases_ = 0;
};

// Sends a staged block of token rows: by bulk copy where all 16 rows exist, else row by row, since
// the rows behind belong to the next expert. The map's dims: columns, halves, rows.
__device__ __forceinline__ void SendRows(BulkWriter& writer, const CUtensorMap* map, Bf16* block,
                                         Bf16* out, int64_t ld, const WarpRows& rows, int column,
                                         int end_column, int half) {
  if (rows.rows >= 16) {
    writer.Send(map, block, column, half, static_cast<int>(rows.row0));
  } else {
    __syncwarp();
    WriteChunk(block, out, ld, rows, column, end_column);
  }
}

// 1 / (1 + exp(-x)); exact to a few float ulps, and 0 or 1 at the ends without NaN.
__device__ __forceinline__ float FastSigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

template <class Accumulators>
__device__ __forceinline__ void TakeChunk(const Accumulators& acc, int first,
                                          float (&v)[kChunkValues]) {
#pragma unroll
  for (int i = 0; i < kChunkValues; ++i) v[i] = acc(first + i);
}

template <class Accumulators>
__device__ __forceinline__ void StoreTile(const Accumulators& acc, BulkWriter& writer,
                                          const CUtensorMap* map, Bf16* out, int64_t ld,
                                          const WarpRows& rows, int column, int end_column) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    float v[kChunkValues];
    TakeChunk(acc, c * kChunkValues, v);
    Bf16* block = writer.Next();
    StageChunk(block, v);
    SendRows(writer, map, block, out, ld, rows, column + c * kChunk, end_column, 0);
  }
}

// A tile of one slab (dims of the map: columns, rows, slabs), where the map's bounds do all
// clipping.
template <bool kAdd, class Accumulators>
__device__ __forceinline__ void StoreSlabBf16(const Accumulators& acc, BulkWriter& writer,
                                              const CUtensorMap* map, int column, int row,
                                              int slab) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    float v[kChunkValues];
    TakeChunk(acc, c * kChunkValues, v);
    Bf16* block = writer.Next();
    StageChunk(block, v);
    writer.Send<kAdd>(map, block, column + c * kChunk, row, slab);
  }
}

// fp32 boxes of 32 columns. Rows swizzle as TMA wants; odd rows go through the four column blocks
// in another order than even rows, which keeps a half-warp's 8-byte stores on different banks.
template <bool kAdd, class Accumulators>
__device__ __forceinline__ void StoreSlabFloat(const Accumulators& acc, BulkWriter& writer,
                                               const CUtensorMap* map, int column, int row,
                                               int slab) {
  const int lane = threadIdx.x % 32;
  const int r = lane / 4;
  const bool odd = r & 1;
#pragma unroll
  for (int box = 0; box < 8; ++box) {
    auto* block = reinterpret_cast<float*>(writer.Next());
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int j = odd ? step ^ 2 : step;
      const int piece = (2 * j + lane % 4 / 2) ^ r;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int even_at = 4 * (4 * box + step) + 2 * half;
        const int odd_at = 4 * (4 * box + (step ^ 2)) + 2 * half;
        const float x = odd ? acc(odd_at) : acc(even_at);
        const float y = odd ? acc(odd_at + 1) : acc(even_at + 1);
        *reinterpret_cast<float2*>(block + (r + 8 * half) * 32 + piece * 4 + lane % 2 * 2) =
            make_float2(x, y);
      }
    }
    writer.Send<kAdd>(map, block, column + 32 * box, row, slab);
  }
}

struct SwiGluOut {
  Bf16* z;  // may be null
  Bf16* h;
  const float* row_weight;  // may be null
  int ffn;
};

__device__ __forceinline__ float RowWeight(const float* weights, const WarpRows& rows, int row) {
  if (row >= rows.rows) return 0.f;
  return weights != nullptr ? weights[rows.row0 + row] : 1.f;
}

// Columns 0-127 of the tile are gate rows, 128-255 the up rows of the same ffn columns. Dims of
// map_z: ffn, 2, rows; of map_h: ffn, 1, rows.
template <class Accumulators>
__device__ __forceinline__ void SwiGluTile(const Accumulators& acc, BulkWriter& writer,
                                           const CUtensorMap* map_z, const CUtensorMap* map_h,
                                           const SwiGluOut& out, const WarpRows& rows, int column) {
  const int lane = threadIdx.x % 32;
  const float weight[2] = {RowWeight(out.row_weight, rows, lane / 4),
                           RowWeight(out.row_weight, rows, lane / 4 + 8)};
  const int64_t ld = 2 * int64_t{out.ffn};
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int at = column + c * kChunk;
    float gate[kChunkValues], up[kChunkValues];
    TakeChunk(acc, c * kChunkValues, gate);
    TakeChunk(acc, 64 + c * kChunkValues, up);
    if (out.z != nullptr) {
      Bf16* block = writer.Next();
      StageChunk(block, gate);
      SendRows(writer, map_z, block, out.z, ld, rows, at, out.ffn, 0);
      block = writer.Next();
      StageChunk(block, up);
      SendRows(writer, map_z, block, out.z + out.ffn, ld, rows, at, out.ffn, 1);
    }
    float h[kChunkValues];
#pragma unroll
    for (int i = 0; i < kChunkValues; ++i) {
      // From the rounded z: the backward, which has only z, then sees the same activation.
      const float g = __bfloat162float(__float2bfloat16_rn(gate[i]));
      const float u = __bfloat162float(__float2bfloat16_rn(up[i]));
      h[i] = weight[(i >> 1) & 1] * g * FastSigmoid(g) * u;
    }
    Bf16* block = writer.Next();
    StageChunk(block, h);
    SendRows(writer, map_h, block, out.h, out.ffn, rows, at, out.ffn, 0);
  }
}

struct SwiGluGradOut {
  Bf16* dz;
  Bf16* h;            // may be null
  float* dp_partial;  // row of this column tile, [max_rows]; may be null
  const float* row_weight;
  int ffn;
};

// Before the products of a tile: the first two chunks of z travel meanwhile.
__device__ __forceinline__ void RequestFirstChunks(BulkWriter& writer, PairReader& reader,
                                                   const CUtensorMap* map_z, int64_t row,
                                                   int column) {
  writer.Finish();
#pragma unroll
  for (int c = 0; c < PairReader::kSlots; ++c) {
    reader.Request(map_z, c, column + c * kChunk, static_cast<int>(row));
  }
}

// Dims of map_z and map_dz: ffn, 2, rows; of map_h: ffn, 1, rows. `h` is staged in the block behind
// the reader's.
template <class Accumulators>
__device__ __forceinline__ void SwiGluGradTile(const Accumulators& acc, BulkWriter& writer,
                                               PairReader& reader, const CUtensorMap* map_z,
                                               const CUtensorMap* map_dz, const CUtensorMap* map_h,
                                               const SwiGluGradOut& out, const WarpRows& rows,
                                               int column) {
  const int lane = threadIdx.x % 32;
  const int64_t ld = 2 * int64_t{out.ffn};
  const float weight[2] = {RowWeight(out.row_weight, rows, lane / 4),
                           RowWeight(out.row_weight, rows, lane / 4 + 8)};
  float dp[2] = {0.f, 0.f};
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int at = column + c * kChunk;
    const int slot = c % PairReader::kSlots;
    Bf16* buffer = writer.Block(2 * slot);
    Bf16* second = writer.Block(2 * slot + 1);
    reader.Await(slot);
    uint32_t h[4][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j == 1 && c > 0) {
        // What the chunk before sent has been read by now; its blocks take the chunk after this.
        writer.Finish();
        if (c < 3) reader.Request(map_z, slot ^ 1, at + kChunk, static_cast<int>(rows.row0));
      }
      float gate[8], up[8], act[8];
      LoadPiece(buffer, j, gate);
      LoadPiece(second, j, up);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int half = (i >> 1) & 1;
        const float dh = acc(c * kChunkValues + 8 * j + i);
        const float sigmoid = FastSigmoid(gate[i]);
        const float silu = gate[i] * sigmoid;
        const float y1 = silu * up[i];
        dp[half] += dh * y1;
        const float dy1 = weight[half] * dh;
        act[i] = weight[half] * y1;
        // silu'(g) = s + g s (1 - s) = s + silu (1 - s)
        gate[i] = dy1 * up[i] * (sigmoid + silu * (1.f - sigmoid));
        up[i] = dy1 * silu;
      }
      // In place: the stores write the very matrices that the whole warp has just read.
      StorePiece(buffer, j, gate);
      StorePiece(second, j, up);
#pragma unroll
      for (int i = 0; i < 4; ++i) h[j][i] = PackBf16(act[2 * i], act[2 * i + 1]);
    }
    SendRows(writer, map_dz, buffer, out.dz, ld, rows, at, out.ffn, 0);
    SendRows(writer, map_dz, second, out.dz + out.ffn, ld, rows, at, out.ffn, 1);
    if (out.h != nullptr) {
      Bf16* block = writer.Block(2 * PairReader::kSlots);
#pragma unroll
      for (int j = 0; j < 4; ++j) StorePiece(block, j, h[j]);
      SendRows(writer, map_h, block, out.h, out.ffn, rows, at, out.ffn, 0);
    }
  }
  if (out.dp_partial == nullptr) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = WarpSum<4>(dp[half]);
    const int row = lane / 4 + 8 * half;
    if (lane % 4 == 0 && row < rows.rows) out.dp_partial[rows.row0 + row] = sum;
  }
}

}  // namespace switchyard::kernels::grouped_gemm

#endif  // SWITCHYARD_KERNELS_GROUPED_GEMM_EPILOGUE_CUH_
