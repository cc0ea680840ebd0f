#include "kernels/adamw/adamw.h"
#include "kernels/common/reduce.cuh"
#include "kernels/common/vec.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;

// Eight consecutive values as float, read once and not wanted in L1 again.
__device__ __forceinline__ void LoadEight(const Bf16* p, float (&v)[8]) {
  Unpack8(__ldcs(reinterpret_cast<const uint4*>(p)), v);
}
__device__ __forceinline__ void LoadEight(const float* p, float (&v)[8]) {
  const float4 a = __ldcs(reinterpret_cast<const float4*>(p));
  const float4 b = __ldcs(reinterpret_cast<const float4*>(p) + 1);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

struct Eight {
  uint32_t half[8];  // 16-bit values, to be stored as 16 bytes
};
__device__ __forceinline__ void StoreEight(void* p, const Eight& e) {
  uint4 words;
  words.x = e.half[0] | e.half[1] << 16;
  words.y = e.half[2] | e.half[3] << 16;
  words.z = e.half[4] | e.half[5] << 16;
  words.w = e.half[6] | e.half[7] << 16;
  __stcs(static_cast<uint4*>(p), words);
}

template <class Moment>
__device__ __forceinline__ void StoreMoments(Moment* p, const float (&v)[8],
                                             const uint64_t (&bits)[8], int shift) {
  if constexpr (sizeof(Moment) == 4) {
    __stcs(reinterpret_cast<float4*>(p), make_float4(v[0], v[1], v[2], v[3]));
    __stcs(reinterpret_cast<float4*>(p) + 1, make_float4(v[4], v[5], v[6], v[7]));
  } else {
    Eight e;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      e.half[i] = RoundStochastic(v[i], (bits[i] >> shift) & 0xffffu).bits;
    StoreEight(p, e);
  }
}

template <class Grad, class Moment>
__global__ void __launch_bounds__(kThreads) AdamWKernel(const AdamWParams<Grad, Moment> p) {
  float scale = 1.f;
  if (p.control != nullptr) {
    if (p.control->apply == 0) return;
    scale = p.control->scale;
  }
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8;
  if (at >= p.size) return;
  float g[8], m[8], v[8], w[8];
  LoadEight(p.grad + at, g);
  LoadEight(p.m + at, m);
  LoadEight(p.v + at, v);
  LoadEight(p.weight + at, w);
  if (p.remainder != nullptr) {
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(p.remainder + at));
    const uint32_t r[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const auto low = static_cast<int16_t>(r[i / 2] >> (16 * (i % 2)));
      w[i] =
          __uint_as_float(__float_as_uint(w[i]) + static_cast<uint32_t>(static_cast<int32_t>(low)));
    }
  }
  uint64_t bits[8];
  Eight weight, remainder;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool draw = sizeof(Moment) == 2 || p.remainder == nullptr;
    bits[i] = draw ? RoundingBits(p.key, p.first_index + at + i) : 0;
    // Each operation rounded by itself: no fused multiply-add, so that the bits are the CPU's.
    const AdamWScalars& c = p.scalars;
    g[i] = __fadd_rn(__fmul_rn(g[i], scale), __fmul_rn(c.l2, w[i]));
    w[i] = __fmul_rn(w[i], c.weight_keep);
    m[i] = __fadd_rn(m[i], __fmul_rn(c.beta1_weight, __fsub_rn(g[i], m[i])));
    v[i] = __fadd_rn(__fmul_rn(v[i], c.beta2), __fmul_rn(__fmul_rn(c.beta2_weight, g[i]), g[i]));
    const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v[i]), c.sqrt_correction2), c.eps);
    w[i] = __fsub_rn(w[i], __fdiv_rn(__fmul_rn(c.step_size, m[i]), denominator));
    const uint32_t master = __float_as_uint(w[i]);
    if (p.remainder != nullptr) {
      weight.half[i] = (master + 0x8000u) >> 16;
      remainder.half[i] = master & 0xffffu;
    } else {
      weight.half[i] = RoundStochastic(w[i], (bits[i] >> 32) & 0xffffu).bits;
    }
  }
  StoreMoments(p.m + at, m, bits, 0);
  StoreMoments(p.v + at, v, bits, 16);
  StoreEight(p.weight + at, weight);
  if (p.remainder != nullptr) StoreEight(p.remainder + at, remainder);
}

template <class Grad, class Moment>
cudaError_t LaunchAdamW(const AdamWParams<Grad, Moment>& p, cudaStream_t stream) {
  const int64_t blocks = CeilDiv(p.size, 8 * kThreads);
  if (p.size < 0 || p.size % 8 != 0 || blocks >= (int64_t{1} << 31)) return cudaErrorInvalidValue;
  if (p.size == 0) return cudaSuccess;
  AdamWKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

template <class Grad>
__global__ void __launch_bounds__(kThreads) GradNormKernel(const GradNormParams<Grad> p) {
  __shared__ float shared[32];
  constexpr int kDepth = 4;
  const int64_t stride = int64_t{gridDim.x} * kThreads * 8;
  float sum[kDepth] = {};
  for (int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8; at < p.size;
       at += kDepth * stride) {
    float g[kDepth][8];
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if (at + d * stride < p.size) {
        LoadEight(p.grad + at + d * stride, g[d]);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) g[d][i] = 0.f;
      }
    }
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[d] += g[d][i] * g[d][i];
    }
  }
  const float total = BlockSum((sum[0] + sum[1]) + (sum[2] + sum[3]), shared);
  if (threadIdx.x == 0) p.partial[blockIdx.x] = total;
}

template <class Grad>
cudaError_t LaunchGradNorm(const GradNormParams<Grad>& p, cudaStream_t stream) {
  if (p.size < 0 || p.size % 8 != 0) return cudaErrorInvalidValue;
  GradNormKernel<<<kNormPartials, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

__global__ void __launch_bounds__(kThreads) FinishKernel(const FinishGradNormParams p) {
  __shared__ double shared[kThreads];
  // Each thread a contiguous share, then thread 0 in order.
  const int64_t share = (p.num_partials + kThreads - 1) / kThreads;
  double sum = 0;
  for (int64_t i = threadIdx.x * share; i < min((threadIdx.x + 1) * share, p.num_partials); ++i) {
    sum += p.partial[i];
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (int i = 0; i < kThreads; ++i) sum += shared[i];
  const auto norm = static_cast<float>(sqrt(sum) / p.divisor);
  const float clip = p.max_norm > 0 && norm > p.max_norm ? p.max_norm / (norm + 1e-6f) : 1.f;
  *p.control = {norm, clip / p.divisor, isfinite(norm) ? 1 : 0};
}

}  // namespace

cudaError_t AdamW(const AdamWParams<float, float>& p, cudaStream_t s) { return LaunchAdamW(p, s); }
cudaError_t AdamW(const AdamWParams<float, Bf16>& p, cudaStream_t s) { return LaunchAdamW(p, s); }
cudaError_t AdamW(const AdamWParams<Bf16, float>& p, cudaStream_t s) { return LaunchAdamW(p, s); }
cudaError_t AdamW(const AdamWParams<Bf16, Bf16>& p, cudaStream_t s) { return LaunchAdamW(p, s); }

cudaError_t GradNorm(const GradNormParams<float>& p, cudaStream_t s) {
  return LaunchGradNorm(p, s);
}
cudaError_t GradNorm(const GradNormParams<Bf16>& p, cudaStream_t s) { return LaunchGradNorm(p, s); }

cudaError_t FinishGradNorm(const FinishGradNormParams& p, cudaStream_t stream) {
  if (p.num_partials < 0 || !(p.divisor > 0)) return cudaErrorInvalidValue;
  FinishKernel<<<1, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace switchyard::kernels
