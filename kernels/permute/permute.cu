#include <cutlass/arch/barrier.h>

#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "kernels/common/vec.cuh"
#include "kernels/permute/permute.h"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPermuteWarps = 4;
constexpr int kPermuteThreads = 32 * kPermuteWarps;
constexpr int kMaxTopK = 32;
constexpr int kMaxHidden = 16384;  // Permute holds four rows in shared memory

using Barrier = cutlass::arch::ClusterTransactionBarrier;

// One warp takes one token: a bulk copy brings the row to shared memory, one bulk copy per expert
// takes it out again. No register, and writes of a whole row at a time.
__global__ void __launch_bounds__(kPermuteThreads) PermuteKernel(const PermuteParams p) {
  extern __shared__ __align__(128) uint8_t rows[];
  __shared__ alignas(8) uint64_t arrived[kPermuteWarps];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int64_t token = int64_t{blockIdx.x} * kPermuteWarps + warp;
  if (token >= p.tokens) return;
  const int row_bytes = 2 * p.hidden;
  // Rows start on 16 bytes; TMA wants no more.
  uint8_t* row_of_warp = rows + warp * row_bytes;
  if (lane == 0) {
    Barrier::init(&arrived[warp], 1);
    cutlass::arch::fence_barrier_init();
    Barrier::arrive_and_expect_tx(&arrived[warp], row_bytes);
    cute::SM90_BULK_COPY_G2S::copy(p.x + token * p.hidden, &arrived[warp], row_of_warp, row_bytes);
  }
  const int row = lane < p.top_k ? p.row_of[token * p.top_k + lane] : -1;
  if (p.weight != nullptr && row >= 0) p.row_weight[row] = p.weight[token * p.top_k + lane];
  __syncwarp();
  Barrier::wait(&arrived[warp], 0);
  if (row >= 0) {
    cute::SM90_BULK_COPY_S2G::copy(row_of_warp, p.out + int64_t{row} * p.hidden, row_bytes);
    cute::tma_store_arrive();
    cute::tma_store_wait<0>();
  }
}

// One warp takes one token; kTopK > 0 lets the compiler have all loads of a column block in flight.
template <int kTopK>
__global__ void __launch_bounds__(kThreads) CombineKernel(const CombineParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (token >= p.tokens) return;
  const int top_k = kTopK > 0 ? kTopK : p.top_k;
  const int my_row = lane < top_k ? p.row_of[token * top_k + lane] : -1;
  if (p.dp_partial != nullptr && lane < top_k) {
    float sum = 0.f;
    for (int i = 0; i < p.num_partials && my_row >= 0; ++i) {
      sum += p.dp_partial[i * p.max_rows + my_row];
    }
    p.d_weight[token * top_k + lane] = sum;
  }
  for (int start = 0; start < p.hidden; start += 256) {
    const int column = start + 8 * lane;
    const bool exists = column < p.hidden;
    float sum[8] = {};
    uint4 residual = make_uint4(0, 0, 0, 0);  // in flight with the rows, added last
    if (p.residual != nullptr && exists) {
      residual = LoadWords(p.residual + token * p.hidden + column);
    }
    if constexpr (kTopK > 0) {
      uint4 words[kTopK];
#pragma unroll
      for (int k = 0; k < kTopK; ++k) {
        const int64_t row = __shfl_sync(0xffffffffu, my_row, k);
        words[k] = exists && row >= 0 ? LoadWords(p.rows + row * p.hidden + column)
                                      : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int k = 0; k < kTopK; ++k) {
        float v[8];
        Unpack8(words[k], v);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += v[i];
      }
    } else {
      for (int k = 0; k < top_k; ++k) {
        const int64_t row = __shfl_sync(0xffffffffu, my_row, k);
        if (!exists || row < 0) continue;
        float v[8];
        Load8(p.rows + row * p.hidden + column, v);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += v[i];
      }
    }
    if (p.residual != nullptr) {
      float v[8];
      Unpack8(residual, v);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] += v[i];
    }
    if (exists) Store8(p.out + token * p.hidden + column, sum);
  }
}

bool IsSupported(int64_t tokens, int hidden, int top_k) {
  return tokens >= 0 && hidden > 0 && hidden <= kMaxHidden && hidden % 8 == 0 && top_k >= 1 &&
         top_k <= kMaxTopK;
}

}  // namespace

cudaError_t Permute(const PermuteParams& p, cudaStream_t stream) {
  if (!IsSupported(p.tokens, p.hidden, p.top_k)) return cudaErrorInvalidValue;
  if (p.tokens == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(CeilDiv(p.tokens, kPermuteWarps));
  const int shared_bytes = kPermuteWarps * 2 * p.hidden;
  const cudaError_t error = cudaFuncSetAttribute(
      PermuteKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  PermuteKernel<<<blocks, kPermuteThreads, shared_bytes, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t Combine(const CombineParams& p, cudaStream_t stream) {
  if (!IsSupported(p.tokens, p.hidden, p.top_k)) return cudaErrorInvalidValue;
  if (p.tokens == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(CeilDiv(p.tokens, kWarps));
  if (p.top_k == 8) {
    CombineKernel<8><<<blocks, kThreads, 0, stream>>>(p);
  } else if (p.top_k == 4) {
    CombineKernel<4><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    CombineKernel<0><<<blocks, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace switchyard::kernels
