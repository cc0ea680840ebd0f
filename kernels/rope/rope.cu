#include "kernels/common/reduce.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/rope/rope.h"

namespace switchyard::kernels {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kDepth = 3;  // heads in flight per group of lanes

// A warp takes one token; kLanes lanes hold a head, eight values each, and cos, sin of their
// columns for all heads. Lanes of the lower half hold n1, of the upper half n2; the partner's
// values come by shuffle.
template <int kLanes>
struct Angles {
  float cos[8], sin[8];  // sin is negative in the lower half: out = n * cos + partner * sin
  __device__ __forceinline__ Angles(const float* cos_table, const float* sin_table,
                                    int64_t position) {
    const int lane = threadIdx.x % kLanes;
    const int64_t at = position * (kLanes * 4) + 8 * (lane % (kLanes / 2));
    const float sign = lane < kLanes / 2 ? -1.f : 1.f;
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const float4 c = *reinterpret_cast<const float4*>(cos_table + at + i);
      const float4 s = *reinterpret_cast<const float4*>(sin_table + at + i);
      cos[i] = c.x, cos[i + 1] = c.y, cos[i + 2] = c.z, cos[i + 3] = c.w;
      sin[i] = sign * s.x, sin[i + 1] = sign * s.y, sin[i + 2] = sign * s.z,
      sin[i + 3] = sign * s.w;
    }
  }
};

template <int kLanes>
__device__ __forceinline__ void Rotate(const Angles<kLanes>& angles, float direction,
                                       float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float partner = __shfl_xor_sync(0xffffffffu, v[i], kLanes / 2);
    v[i] = v[i] * angles.cos[i] + direction * partner * angles.sin[i];
  }
}

__device__ __forceinline__ float SumOfSquares(const float (&v)[8]) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += v[i] * v[i];
  return sum;
}

__device__ __forceinline__ float Rounded(float v) {
  return __bfloat162float(__float2bfloat16_rn(v));
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads) RopeKernel(const RopeParams p) {
  constexpr int kGroups = 32 / kLanes;
  constexpr int kHeadDim = 8 * kLanes;
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (token >= p.tokens) return;
  const int column = 8 * (threadIdx.x % kLanes);
  const int group = threadIdx.x % 32 / kLanes;
  const Angles<kLanes> angles(p.cos, p.sin, p.positions[token]);
  const int heads = p.q_heads + p.k_heads;
  for (int base = 0; base < heads; base += kGroups * kDepth) {
    uint4 words[kDepth];
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int head = base + d * kGroups + group;
      const Bf16* in = head < p.q_heads ? p.q + token * p.q_stride + head * kHeadDim
                                        : p.k + token * p.k_stride + (head - p.q_heads) * kHeadDim;
      words[d] = head < heads ? LoadWords(in + column) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int head = base + d * kGroups + group;
      const bool is_q = head < p.q_heads;
      float v[8];
      Unpack8(words[d], v);
      if (p.q_weight != nullptr) {
        const float rstd = rsqrtf(WarpSum<kLanes>(SumOfSquares(v)) / kHeadDim + p.eps);
        float w[8];
        Load8((is_q ? p.q_weight : p.k_weight) + column, w);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = Rounded(Rounded(v[i] * rstd) * w[i]);
      }
      Rotate(angles, 1.f, v);
      Bf16* out = is_q ? p.q_out + (token * p.q_heads + head) * kHeadDim
                       : p.k_out + (token * p.k_heads + head - p.q_heads) * kHeadDim;
      if (head < heads) Store8(out + column, v);
    }
  }
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads) RopeGradKernel(const RopeGradParams p) {
  constexpr int kGroups = 32 / kLanes;
  constexpr int kHeadDim = 8 * kLanes;
  __shared__ float sums[kThreads][2 * 8 + 1];
  const int column = 8 * (threadIdx.x % kLanes);
  const int group = threadIdx.x % 32 / kLanes;
  const int heads = p.q_heads + p.k_heads;
  float d_weight[2][8] = {};  // of q, of k
  for (int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; token < p.tokens;
       token += int64_t{gridDim.x} * kWarps) {
    const Angles<kLanes> angles(p.cos, p.sin, p.positions[token]);
    for (int base = 0; base < heads; base += kGroups * kDepth) {
      uint4 d_words[kDepth], x_words[kDepth];
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const int head = base + d * kGroups + group;
        const bool is_q = head < p.q_heads;
        const Bf16* d_out = is_q ? p.dq_out + (token * p.q_heads + head) * kHeadDim
                                 : p.dk_out + (token * p.k_heads + head - p.q_heads) * kHeadDim;
        const Bf16* in = is_q ? p.q + token * p.q_stride + head * kHeadDim
                              : p.k + token * p.k_stride + (head - p.q_heads) * kHeadDim;
        const bool exists = head < heads;
        d_words[d] = exists ? LoadWords(d_out + column) : make_uint4(0, 0, 0, 0);
        x_words[d] =
            exists && p.q_weight != nullptr ? LoadWords(in + column) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const int head = base + d * kGroups + group;
        const bool is_q = head < p.q_heads;
        float v[8];
        Unpack8(d_words[d], v);
        Rotate(angles, -1.f, v);  // the transposed rotation
        if (p.q_weight != nullptr) {
          float x[8], w[8];
          Unpack8(x_words[d], x);
          Load8((is_q ? p.q_weight : p.k_weight) + column, w);
          const float rstd = rsqrtf(WarpSum<kLanes>(SumOfSquares(x)) / kHeadDim + p.eps);
          float dot = 0.f;
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            x[i] *= rstd;
            const float share = v[i] * Rounded(x[i]);
            d_weight[0][i] += is_q ? share : 0.f;
            d_weight[1][i] += is_q ? 0.f : share;
            dot += v[i] * w[i] * x[i];
          }
          dot = WarpSum<kLanes>(dot) / kHeadDim;
#pragma unroll
          for (int i = 0; i < 8; ++i) v[i] = rstd * (v[i] * w[i] - x[i] * dot);
        }
        Bf16* out = is_q ? p.dq + token * p.q_stride + head * kHeadDim
                         : p.dk + token * p.k_stride + (head - p.q_heads) * kHeadDim;
        if (head < heads) Store8(out + column, v);
      }
    }
  }
  if (p.q_weight == nullptr) return;
#pragma unroll
  for (int i = 0; i < 16; ++i) sums[threadIdx.x][i] = d_weight[i / 8][i % 8];
  __syncthreads();
  for (int at = threadIdx.x; at < 2 * kHeadDim; at += kThreads) {
    const int which = at / kHeadDim;
    const int c = at % kHeadDim;
    float sum = 0.f;
    for (int g = 0; g < kThreads / kLanes; ++g) sum += sums[g * kLanes + c / 8][which * 8 + c % 8];
    p.workspace[int64_t{blockIdx.x} * 2 * kHeadDim + at] = sum;
  }
}

// One block per 32 columns of [2, head_dim]; eight warps share the rows and add in order.
__global__ void __launch_bounds__(256)
    FinishRopeWeights(const float* workspace, int head_dim, float* dq_weight, float* dk_weight,
                      bool accumulate) {
  __shared__ float partial[8][32];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int column = blockIdx.x * 32 + lane;
  float sum = 0.f;
#pragma unroll 4
  for (int row = warp; row < kRopeGradBlocks; row += 8) {
    sum += workspace[int64_t{row} * 2 * head_dim + column];
  }
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp != 0) return;
  sum = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += partial[i][lane];
  float* to = column < head_dim ? dq_weight + column : dk_weight + column - head_dim;
  *to = accumulate ? *to + sum : sum;
}

bool IsSupported(int64_t tokens, int64_t q_stride, int64_t k_stride, int head_dim, bool q_norm,
                 bool k_norm) {
  return tokens >= 0 && q_stride % 8 == 0 && k_stride % 8 == 0 &&
         (head_dim == 64 || head_dim == 128) && q_norm == k_norm;
}

}  // namespace

cudaError_t Rope(const RopeParams& p, cudaStream_t stream) {
  if (!IsSupported(p.tokens, p.q_stride, p.k_stride, p.head_dim, p.q_weight != nullptr,
                   p.k_weight != nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (p.tokens == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(CeilDiv(p.tokens, kWarps));
  if (p.head_dim == 64) {
    RopeKernel<8><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    RopeKernel<16><<<blocks, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

cudaError_t RopeGrad(const RopeGradParams& p, cudaStream_t stream) {
  if (!IsSupported(p.tokens, p.q_stride, p.k_stride, p.head_dim, p.q_weight != nullptr,
                   p.k_weight != nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (p.head_dim == 64) {
    RopeGradKernel<8><<<kRopeGradBlocks, kThreads, 0, stream>>>(p);
  } else {
    RopeGradKernel<16><<<kRopeGradBlocks, kThreads, 0, stream>>>(p);
  }
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess || p.q_weight == nullptr) return error;
  FinishRopeWeights<<<2 * p.head_dim / 32, 256, 0, stream>>>(p.workspace, p.head_dim, p.dq_weight,
                                                             p.dk_weight, p.accumulate);
  return cudaGetLastError();
}

}  // namespace switchyard::kernels
