#include "kernels/common/vec.cuh"
#include "kernels/permute/permute.h"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxTopK = 32;

// One warp takes one token and 256 columns at a time.
__global__ void __launch_bounds__(kThreads) PermuteKernel(const PermuteParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (token >= p.tokens) return;
  const int my_row = lane < p.top_k ? p.row_of[token * p.top_k + lane] : -1;
  if (p.weight != nullptr && my_row >= 0) p.row_weight[my_row] = p.weight[token * p.top_k + lane];
  constexpr int kDepth = 8;  // loads in flight per lane; then 4 KB of a row are written at once
  const Bf16* in = p.x + token * p.hidden;
  for (int base = 8 * lane; base < p.hidden; base += 256 * kDepth) {
    uint4 words[kDepth];
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if (base + 256 * d < p.hidden) words[d] = LoadWords(in + base + 256 * d);
    }
    for (int k = 0; k < p.top_k; ++k) {
      const int64_t row = p.row_of[token * p.top_k + k];  // the whole warp reads one word
      if (row < 0) continue;
      Bf16* out = p.out + row * p.hidden;
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        if (base + 256 * d < p.hidden) StoreWords(out + base + 256 * d, words[d]);
      }
    }
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
    if (p.residual != nullptr && exists) Load8(p.residual + token * p.hidden + column, sum);
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
    if (exists) Store8(p.out + token * p.hidden + column, sum);
  }
}

bool IsSupported(int64_t tokens, int hidden, int top_k) {
  return tokens >= 0 && hidden > 0 && hidden % 8 == 0 && top_k >= 1 && top_k <= kMaxTopK;
}

}  // namespace

cudaError_t Permute(const PermuteParams& p, cudaStream_t stream) {
  if (!IsSupported(p.tokens, p.hidden, p.top_k)) return cudaErrorInvalidValue;
  if (p.tokens == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(CeilDiv(p.tokens, kWarps));
  PermuteKernel<<<blocks, kThreads, 0, stream>>>(p);
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
