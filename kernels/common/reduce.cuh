// Sums and maxima over a warp or a block, in a fixed order: the same inputs give the same bits.
#ifndef SWITCHYARD_KERNELS_COMMON_REDUCE_CUH_
#define SWITCHYARD_KERNELS_COMMON_REDUCE_CUH_

namespace switchyard::kernels {

// Sum over the `Lanes` lanes that share the bits above log2(Lanes); every one of them gets it.
template <int Lanes = 32>
__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int mask = Lanes / 2; mask > 0; mask /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, mask);
  }
  return value;
}

template <int Lanes = 32>
__device__ __forceinline__ float WarpMax(float value) {
#pragma unroll
  for (int mask = Lanes / 2; mask > 0; mask /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, mask));
  }
  return value;
}

// A barrier for one of up to 15 groups of kThreads threads; the other warps of the block go on.
template <int kThreads>
__device__ __forceinline__ void SyncWarps(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kThreads) : "memory");
}

// Sum over the block; every thread gets it. All threads call it; `shared` holds 32 floats and may
// be reused after the next barrier.
__device__ __forceinline__ float BlockSum(float value, float* shared) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  value = WarpSum(value);
  __syncthreads();
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  const int warps = (blockDim.x + 31) / 32;
  return WarpSum(lane < warps ? shared[lane] : 0.f);
}

__device__ __forceinline__ float BlockMax(float value, float* shared) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  value = WarpMax(value);
  __syncthreads();
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  const int warps = (blockDim.x + 31) / 32;
  return WarpMax(lane < warps ? shared[lane] : -INFINITY);
}

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_COMMON_REDUCE_CUH_
