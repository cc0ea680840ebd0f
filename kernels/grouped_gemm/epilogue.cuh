// What happens to a finished tile. Every warp works alone on its 16 rows: accumulators go through a
// private, swizzled 4 KB of shared memory, so that global memory sees 16 bytes per lane and 128
// contiguous bytes per row, and no barrier is wider than a warp.
//
// Accumulator layout of wgmma m64n256 per thread: value 4 * j + 2 * h + c is row lane / 4 + 8 * h,
// column 8 * j + 2 * (lane % 4) + c. A chunk is 64 columns: 32 values, one 16 x 64 block per warp.
#ifndef SWITCHYARD_KERNELS_GROUPED_GEMM_EPILOGUE_CUH_
#define SWITCHYARD_KERNELS_GROUPED_GEMM_EPILOGUE_CUH_

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm90.hpp>

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
// kAdd adds what is there.
template <bool kAdd = false>
__device__ __forceinline__ void WriteChunk(Bf16* buffer, Bf16* out, int64_t ld,
                                           const WarpRows& rows, int column, int end_column) {
  const int lane = threadIdx.x % 32;
  const int block = lane % 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = 4 * i + lane / 8;
    if (row >= rows.rows || column + 8 * block >= end_column) continue;
    uint4 words = LoadWords(Swizzled(buffer, row, block));
    Bf16* target = out + (rows.row0 + row) * ld + column + 8 * block;
    if constexpr (kAdd) {
      float sum[8], old[8];
      Unpack8(words, sum);
      Load8(target, old);
#pragma unroll
      for (int c = 0; c < 8; ++c) sum[c] += old[c];
      words = Pack8(sum);
    }
    StoreWords(target, words);
  }
}

// One warp's loads of a 16 x 64 block from global memory, zeros where nothing exists.
struct ChunkWords {
  uint4 words[4];
};
__device__ __forceinline__ ChunkWords ReadChunk(const Bf16* in, int64_t ld, const WarpRows& rows,
                                                int column, int end_column) {
  const int lane = threadIdx.x % 32;
  const int block = lane % 8;
  ChunkWords chunk;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = 4 * i + lane / 8;
    const bool exists = row < rows.rows && column + 8 * block < end_column;
    chunk.words[i] = exists ? LoadWords(in + (rows.row0 + row) * ld + column + 8 * block)
                            : make_uint4(0, 0, 0, 0);
  }
  return chunk;
}
__device__ __forceinline__ void PutChunk(Bf16* buffer, const ChunkWords& chunk) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    StoreWords(Swizzled(buffer, 4 * i + lane / 8, lane % 8), chunk.words[i]);
}

// 1 / (1 + exp(-x)); exact to a few float ulps, and 0 or 1 at the ends without NaN.
__device__ __forceinline__ float FastSigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

template <class Accumulators>
__device__ __forceinline__ void TakeChunk(const Accumulators& acc, int first,
                                          float (&v)[kChunkValues]) {
#pragma unroll
  for (int i = 0; i < kChunkValues; ++i) v[i] = acc(first + i);
}

// Plain bf16 store; kAdd adds into `out`.
template <bool kAdd, class Accumulators>
__device__ __forceinline__ void StoreTile(const Accumulators& acc, Bf16* buffer, Bf16* out,
                                          int64_t ld, const WarpRows& rows, int column,
                                          int end_column) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    Bf16* half = buffer + (c & 1) * kChunkElements;
    float v[kChunkValues];
    TakeChunk(acc, c * kChunkValues, v);
    StageChunk(half, v);
    __syncwarp();
    WriteChunk<kAdd>(half, out, ld, rows, column + c * kChunk, end_column);
  }
  __syncwarp();
}

// fp32 straight from the registers: four lanes fill one 32-byte sector.
template <class Accumulators>
__device__ __forceinline__ void StoreTile(const Accumulators& acc, float* out, int64_t ld,
                                          const WarpRows& rows, int column, int end_column,
                                          bool add) {
  const int lane = threadIdx.x % 32;
  column += 2 * (lane % 4);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = lane / 4 + 8 * h;
    if (row >= rows.rows) continue;
    float* line = out + (rows.row0 + row) * ld + column;
#pragma unroll
    for (int batch = 0; batch < 4; ++batch) {
      float2 v[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int block = 8 * batch + j;
        v[j] = make_float2(acc(4 * block + 2 * h), acc(4 * block + 2 * h + 1));
      }
      if (add) {
        float2 old[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int at = 8 * (8 * batch + j);
          old[j] = column + at < end_column ? __ldcs(reinterpret_cast<const float2*>(line + at))
                                            : make_float2(0.f, 0.f);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          v[j].x += old[j].x;
          v[j].y += old[j].y;
        }
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int at = 8 * (8 * batch + j);
        if (column + at < end_column) __stcs(reinterpret_cast<float2*>(line + at), v[j]);
      }
    }
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

// Columns 0-127 of the tile are gate rows, 128-255 the up rows of the same ffn columns.
template <class Accumulators>
__device__ __forceinline__ void SwiGluTile(const Accumulators& acc, Bf16* buffer,
                                           const SwiGluOut& out, const WarpRows& rows, int column) {
  const int lane = threadIdx.x % 32;
  const float weight[2] = {RowWeight(out.row_weight, rows, lane / 4),
                           RowWeight(out.row_weight, rows, lane / 4 + 8)};
  Bf16* second = buffer + kChunkElements;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int at = column + c * kChunk;
    float gate[kChunkValues], up[kChunkValues];
    TakeChunk(acc, c * kChunkValues, gate);
    TakeChunk(acc, 64 + c * kChunkValues, up);
    if (out.z != nullptr) {
      StageChunk(buffer, gate);
      StageChunk(second, up);
      __syncwarp();
      WriteChunk(buffer, out.z, 2 * int64_t{out.ffn}, rows, at, out.ffn);
      WriteChunk(second, out.z + out.ffn, 2 * int64_t{out.ffn}, rows, at, out.ffn);
      __syncwarp();
    }
    float h[kChunkValues];
#pragma unroll
    for (int i = 0; i < kChunkValues; ++i) {
      // From the rounded z: the backward, which has only z, then sees the same activation.
      const float g = __bfloat162float(__float2bfloat16_rn(gate[i]));
      const float u = __bfloat162float(__float2bfloat16_rn(up[i]));
      h[i] = weight[(i >> 1) & 1] * g * FastSigmoid(g) * u;
    }
    StageChunk(buffer, h);
    __syncwarp();
    WriteChunk(buffer, out.h, out.ffn, rows, at, out.ffn);
    __syncwarp();
  }
}

struct SwiGluGradOut {
  const Bf16* z;
  Bf16* dz;
  Bf16* h;            // may be null
  float* dp_partial;  // row of this column tile, [max_rows]; may be null
  const float* row_weight;
  int ffn;
};

template <class Accumulators>
__device__ __forceinline__ void SwiGluGradTile(const Accumulators& acc, Bf16* buffer,
                                               const SwiGluGradOut& out, const WarpRows& rows,
                                               int column) {
  const int lane = threadIdx.x % 32;
  const int64_t ld = 2 * int64_t{out.ffn};
  const float weight[2] = {RowWeight(out.row_weight, rows, lane / 4),
                           RowWeight(out.row_weight, rows, lane / 4 + 8)};
  float dp[2] = {0.f, 0.f};
  Bf16* second = buffer + kChunkElements;
  ChunkWords next_gate = ReadChunk(out.z, ld, rows, column, out.ffn);
  ChunkWords next_up = ReadChunk(out.z + out.ffn, ld, rows, column, out.ffn);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int at = column + c * kChunk;
    PutChunk(buffer, next_gate);
    PutChunk(second, next_up);
    __syncwarp();
    uint32_t h[4][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
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
    if (c < 3) {
      next_gate = ReadChunk(out.z, ld, rows, at + kChunk, out.ffn);
      next_up = ReadChunk(out.z + out.ffn, ld, rows, at + kChunk, out.ffn);
    }
    __syncwarp();
    WriteChunk(buffer, out.dz, ld, rows, at, out.ffn);
    WriteChunk(second, out.dz + out.ffn, ld, rows, at, out.ffn);
    __syncwarp();
    if (out.h != nullptr) {
#pragma unroll
      for (int j = 0; j < 4; ++j) StorePiece(buffer, j, h[j]);
      __syncwarp();
      WriteChunk(buffer, out.h, out.ffn, rows, at, out.ffn);
      __syncwarp();
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
