#include "kernels/common/reduce.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/rmsnorm/rmsnorm.h"

namespace switchyard::kernels {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
// Few large blocks in the backward: each leaves one row of partial sums for the second kernel. Many
// warps share a row, so that registers hold two rows and rows divide evenly over the blocks.
constexpr int kGradWarps = 16;
constexpr int kGradThreads = 32 * kGradWarps;

// kRowWarps warps share a row, each lane kVecs pieces of eight columns. Sums `value` over the row.
// `shared` holds one float per warp; every thread of those warps calls it.
template <int kRowWarps>
__device__ __forceinline__ float RowSum(float value, float* shared) {
  value = WarpSum(value);
  if constexpr (kRowWarps > 1) {
    const int warp = threadIdx.x / 32;
    SyncWarps<32 * kRowWarps>(warp / kRowWarps);
    if (threadIdx.x % 32 == 0) shared[warp] = value;
    SyncWarps<32 * kRowWarps>(warp / kRowWarps);
    value = 0.f;
#pragma unroll
    for (int i = 0; i < kRowWarps; ++i) value += shared[warp / kRowWarps * kRowWarps + i];
  }
  return value;
}

template <int kRowWarps, int kVecs>
__global__ void __launch_bounds__(kThreads) NormKernel(const RmsNormParams p) {
  __shared__ float shared[kWarps];
  constexpr int kRows = kWarps / kRowWarps;
  const int row_lane = threadIdx.x % (32 * kRowWarps);
  const int64_t token = int64_t{blockIdx.x} * kRows + threadIdx.x / (32 * kRowWarps);
  const bool live = token < p.tokens;
  uint4 words[kVecs];
  float squares = 0.f;
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    const int column = 8 * (row_lane + 32 * kRowWarps * v);
    words[v] = live && column < p.hidden ? LoadWords(p.x + token * p.hidden + column)
                                         : make_uint4(0, 0, 0, 0);
  }
  if (p.residual != nullptr) {
    uint4 more[kVecs];
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      const int column = 8 * (row_lane + 32 * kRowWarps * v);
      more[v] = live && column < p.hidden ? LoadWords(p.residual + token * p.hidden + column)
                                          : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      const int column = 8 * (row_lane + 32 * kRowWarps * v);
      float a[8], b[8];
      Unpack8(words[v], a);
      Unpack8(more[v], b);
#pragma unroll
      for (int i = 0; i < 8; ++i) a[i] += b[i];
      words[v] = Pack8(a);
      if (live && column < p.hidden) StoreWords(p.sum + token * p.hidden + column, words[v]);
    }
  }
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    float s[8];
    Unpack8(words[v], s);
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += s[i] * s[i];
  }
  const float rstd = rsqrtf(RowSum<kRowWarps>(squares, shared) / p.hidden + p.eps);
  if (!live) return;
  if (p.rstd != nullptr && row_lane == 0) p.rstd[token] = rstd;
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    const int column = 8 * (row_lane + 32 * kRowWarps * v);
    if (column >= p.hidden) continue;
    float s[8], w[8];
    Unpack8(words[v], s);
    Load8(p.weight + column, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float xn = s[i] * rstd;
      if (p.kind == NormKind::kLlama) {
        s[i] = __bfloat162float(__float2bfloat16_rn(xn)) * w[i];
      } else {
        s[i] = xn * (p.kind == NormKind::kZeroCentred ? 1.f + w[i] : w[i]);
      }
    }
    Store8(p.out + token * p.hidden + column, s);
  }
}

// A block walks over tokens with a fixed stride and keeps its sum of the weight gradient in
// registers.
template <int kRowWarps, int kVecs>
__global__ void __launch_bounds__(kGradThreads) NormGradKernel(const RmsNormGradParams p) {
  __shared__ float shared[kGradWarps];
  __shared__ float sums[kGradThreads][8 + 1];
  constexpr int kRows = kGradWarps / kRowWarps;
  const int row_lane = threadIdx.x % (32 * kRowWarps);
  const float added = p.kind == NormKind::kZeroCentred ? 1.f : 0.f;
  float d_weight[kVecs][8] = {};
  // The next row is on its way while this one is reduced and written: with one block per SM nothing
  // else keeps the memory busy.
  struct Row {
    uint4 s[kVecs], d[kVecs], passed[kVecs];
    float rstd;
  };
  const int64_t stride = int64_t{gridDim.x} * kRows;
  int64_t token = int64_t{blockIdx.x} * kRows + threadIdx.x / (32 * kRowWarps);
  const auto load = [&](int64_t of) {
    Row row;
    row.rstd = of < p.tokens ? p.rstd[of] : 0.f;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      const int column = 8 * (row_lane + 32 * kRowWarps * v);
      const bool exists = of < p.tokens && column < p.hidden;
      row.s[v] = exists ? LoadWords(p.sum + of * p.hidden + column) : make_uint4(0, 0, 0, 0);
      row.d[v] = exists ? LoadWords(p.dout + of * p.hidden + column) : make_uint4(0, 0, 0, 0);
      row.passed[v] = exists && p.d_sum != nullptr ? LoadWords(p.d_sum + of * p.hidden + column)
                                                   : make_uint4(0, 0, 0, 0);
    }
    return row;
  };
  Row next = load(token);
  for (int64_t first = int64_t{blockIdx.x} * kRows; first < p.tokens;
       first += stride, token += stride) {
    const bool live = token < p.tokens;
    const Row row = next;
    if (first + stride < p.tokens) next = load(token + stride);
    const float rstd = row.rstd;
    float dot = 0.f;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      const int column = 8 * (row_lane + 32 * kRowWarps * v);
      if (column >= p.hidden) continue;
      float s[8], d[8], w[8];
      Unpack8(row.s[v], s);
      Unpack8(row.d[v], d);
      Load8(p.weight + column, w);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float xn = s[i] * rstd;
        dot += d[i] * (w[i] + added) * xn;
        d_weight[v][i] +=
            d[i] * (p.kind == NormKind::kLlama ? __bfloat162float(__float2bfloat16_rn(xn)) : xn);
      }
    }
    const float mean = RowSum<kRowWarps>(dot, shared) / p.hidden;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      const int column = 8 * (row_lane + 32 * kRowWarps * v);
      if (!live || column >= p.hidden) continue;
      float s[8], d[8], w[8], out[8];
      Unpack8(row.s[v], s);
      Unpack8(row.d[v], d);
      Load8(p.weight + column, w);
      Unpack8(row.passed[v], out);
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] += rstd * (d[i] * (w[i] + added) - s[i] * rstd * mean);
      Store8(p.dx + token * p.hidden + column, out);
    }
  }
  // The block's rows in order, then one row of the workspace.
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[threadIdx.x][i] = d_weight[v][i];
    __syncthreads();
    const int column = 8 * (row_lane + 32 * kRowWarps * v);
    if (threadIdx.x < 32 * kRowWarps && column < p.hidden) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float sum = 0.f;
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum += sums[threadIdx.x + r * 32 * kRowWarps][i];
        p.workspace[int64_t{blockIdx.x} * p.hidden + column + i] = sum;
      }
    }
  }
}

// One warp per 32 columns would leave the card idle: eight warps split the rows, then add in order.
__global__ void __launch_bounds__(256)
    FinishWeightGrad(const float* workspace, int rows, int hidden, float* d_weight,
                     bool accumulate) {
  __shared__ float partial[8][32];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int column = blockIdx.x * 32 + lane;
  // Launched before NormGradKernel ends: here its writes are waited for.
  cudaGridDependencySynchronize();
  float sum = 0.f;
  if (column < hidden) {
#pragma unroll 8
    for (int row = warp; row < rows; row += 8) sum += workspace[int64_t{row} * hidden + column];
  }
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= hidden) return;
  sum = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += partial[i][lane];
  d_weight[column] = accumulate ? d_weight[column] + sum : sum;
}

// Call launch.operator()<row warps, pieces per lane>() for the smallest shape that holds `hidden`.
template <class Launch>
void DispatchGrad(int hidden, const Launch& launch) {
  if (hidden <= 256) return launch.template operator()<1, 1>();
  if (hidden <= 1024) return launch.template operator()<2, 2>();
  if (hidden <= 2048) return launch.template operator()<4, 2>();
  if (hidden <= 4096) return launch.template operator()<8, 2>();
  return launch.template operator()<16, 2>();
}

template <class Launch>
void Dispatch(int hidden, const Launch& launch) {
  if (hidden <= 256) return launch.template operator()<1, 1>();
  if (hidden <= 1024) return launch.template operator()<1, 4>();
  if (hidden <= 2048) return launch.template operator()<2, 4>();
  if (hidden <= 4096) return launch.template operator()<4, 4>();
  return launch.template operator()<4, 8>();
}

bool IsSupported(int64_t tokens, int hidden) {
  return tokens >= 0 && hidden > 0 && hidden % 8 == 0 && hidden <= 8192;
}

}  // namespace

cudaError_t RmsNorm(const RmsNormParams& p, cudaStream_t stream) {
  if (!IsSupported(p.tokens, p.hidden)) return cudaErrorInvalidValue;
  if (p.tokens == 0) return cudaSuccess;
  Dispatch(p.hidden, [&]<int kRowWarps, int kVecs>() {
    const auto blocks = static_cast<unsigned>(CeilDiv(p.tokens, kWarps / kRowWarps));
    NormKernel<kRowWarps, kVecs><<<blocks, kThreads, 0, stream>>>(p);
  });
  return cudaGetLastError();
}

cudaError_t RmsNormGrad(const RmsNormGradParams& p, cudaStream_t stream) {
  if (!IsSupported(p.tokens, p.hidden)) return cudaErrorInvalidValue;
  // Without tokens the kernel still writes zeros to the workspace, so d_weight comes out right.
  const int blocks = kNormGradBlocks;
  DispatchGrad(p.hidden, [&]<int kRowWarps, int kVecs>() {
    NormGradKernel<kRowWarps, kVecs><<<blocks, kGradThreads, 0, stream>>>(p);
  });
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(CeilDiv(p.hidden, 32));
  config.blockDim = 256;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, FinishWeightGrad, static_cast<const float*>(p.workspace),
                            blocks, p.hidden, p.d_weight, p.accumulate);
}

}  // namespace switchyard::kernels
