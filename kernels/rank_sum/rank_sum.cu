#include <algorithm>

#include "kernels/common/vec.cuh"
#include "kernels/rank_sum/rank_sum.h"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 8;

// Elements that one thread adds at a time: 16 bytes.
template <class T>
constexpr int kVector = 16 / sizeof(T);

__device__ void Load(const float* p, float (&out)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(p);
  out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}
__device__ void Load(const Bf16* p, float (&out)[8]) { Load8(p, out); }
__device__ void Store(float* p, const float (&in)[4]) {
  *reinterpret_cast<float4*>(p) = make_float4(in[0], in[1], in[2], in[3]);
}
__device__ void Store(Bf16* p, const float (&in)[8]) { Store8(p, in); }
__device__ void Load(const float* p, float (&out)[1]) { out[0] = *p; }
__device__ void Load(const Bf16* p, float (&out)[1]) { out[0] = ToFloat(*p); }
__device__ void Store(float* p, const float (&in)[1]) { *p = in[0]; }
__device__ void Store(Bf16* p, const float (&in)[1]) { *p = ToBf16(in[0]); }

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) SumKernel(const RankSumParams<T> p) {
  const int64_t step = int64_t{gridDim.x} * kThreads * kWidth;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth; i < p.size; i += step) {
    float sum[kWidth];
    Load(p.parts + i, sum);
    for (int rank = 1; rank < p.ranks; ++rank) {
      float part[kWidth];
      Load(p.parts + rank * p.size + i, part);
#pragma unroll
      for (int c = 0; c < kWidth; ++c) sum[c] += part[c];
    }
    Store(p.out + i, sum);
  }
}

template <class T, int kWidth>
cudaError_t LaunchSum(const RankSumParams<T>& p, cudaStream_t stream) {
  const int64_t blocks = std::min<int64_t>(CeilDiv(p.size, int64_t{kThreads} * kWidth),
                                           int64_t{NumSms()} * kBlocksPerSm);
  SumKernel<T, kWidth><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

template <class T>
cudaError_t Sum(const RankSumParams<T>& p, cudaStream_t stream) {
  if (p.ranks < 1 || p.size < 0) return cudaErrorInvalidValue;
  if (p.size == 0) return cudaSuccess;
  const bool aligned = p.size % kVector<T> == 0 && IsAligned(p.parts, 16) && IsAligned(p.out, 16);
  return aligned ? LaunchSum<T, kVector<T>>(p, stream) : LaunchSum<T, 1>(p, stream);
}

}  // namespace

cudaError_t RankSum(const RankSumParams<float>& p, cudaStream_t stream) { return Sum(p, stream); }
cudaError_t RankSum(const RankSumParams<Bf16>& p, cudaStream_t stream) { return Sum(p, stream); }

}  // namespace switchyard::kernels
