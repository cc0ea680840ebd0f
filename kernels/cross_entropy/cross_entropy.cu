#include <cooperative_groups.h>

#include <algorithm>

#include "kernels/common/reduce.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/grouped_gemm/grouped_gemm.h"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 512;

// One cluster of kCluster blocks per row; thread i of block b holds the pieces of eight logits
// number (v * kCluster + b) * kThreads + i, v < kVecs.
template <int kCluster, int kVecs>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, kVecs <= 5 ? 3 : 2)
    CrossEntropyKernel(const CrossEntropyParams p) {
  namespace cg = cooperative_groups;
  __shared__ float shared[32];
  __shared__ float2 parts[kCluster];  // each block's (max, sum of exp)
  cg::cluster_group cluster = cg::this_cluster();
  // Waited for before the first write to a peer: until then it may not have started.
  cluster.barrier_arrive();
  const int rank = static_cast<int>(cluster.block_rank());
  const int64_t row = blockIdx.x / kCluster;
  Bf16* logits = p.logits + row * p.vocabulary;
  const int32_t label = p.labels[row];
  auto column = [&](int v) {
    return 8 * ((v * kCluster + rank) * kThreads + static_cast<int>(threadIdx.x));
  };

  uint4 words[kVecs];
  float max = -INFINITY;
  float at_label = 0.f;
  bool holds_label = false;
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    if (column(v) < p.vocabulary) words[v] = LoadWords(logits + column(v));
  }
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    if (column(v) >= p.vocabulary) continue;
    float z[8];
    Unpack8(words[v], z);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      max = fmaxf(max, z[i]);
      if (column(v) + i == label) {
        at_label = z[i];
        holds_label = true;
      }
    }
  }
  max = BlockMax(max, shared);
  // A block past the end of a short vocabulary has nothing: its sum must be 0, not NaN.
  const float base = max == -INFINITY ? 0.f : max;
  float sum = 0.f;
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    if (column(v) >= p.vocabulary) continue;
    float z[8];
    Unpack8(words[v], z);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += __expf(z[i] - base);
  }
  sum = BlockSum(sum, shared);
  cluster.barrier_wait();
  if (threadIdx.x < kCluster)
    *cluster.map_shared_rank(&parts[rank], threadIdx.x) = make_float2(max, sum);
  cluster.sync();
  float row_max = parts[0].x;
#pragma unroll
  for (int i = 1; i < kCluster; ++i) row_max = fmaxf(row_max, parts[i].x);
  float row_sum = 0.f;
#pragma unroll
  for (int i = 0; i < kCluster; ++i) row_sum += parts[i].y * __expf(parts[i].x - row_max);
  const float log_sum = row_max + __logf(row_sum);
  if (label < 0) {
    if (rank == 0 && threadIdx.x == 0) p.loss[row] = 0.f;
  } else if (holds_label) {  // one thread of the cluster
    p.loss[row] = log_sum - at_label;
  }
  if (!p.gradient) return;
  const float scale = label < 0 ? 0.f : (p.scale != nullptr ? *p.scale : 1.f);
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    if (column(v) >= p.vocabulary) continue;
    float z[8];
    Unpack8(words[v], z);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      z[i] =
          label < 0 ? 0.f : scale * (__expf(z[i] - log_sum) - (column(v) + i == label ? 1.f : 0.f));
    }
    Store8(logits + column(v), z);
  }
}

template <int kCluster, int kVecs>
cudaError_t LaunchRows(const CrossEntropyParams& p, cudaStream_t stream) {
  CrossEntropyKernel<kCluster, kVecs>
      <<<static_cast<unsigned>(p.rows * kCluster), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

// dh = the sum of the splits, rounded once.
__global__ void __launch_bounds__(256) SumSplits(const float* partial, int64_t size, Bf16* out) {
  const int64_t at = (int64_t{blockIdx.x} * 256 + threadIdx.x) * 8;
  if (at >= size) return;
  float sum[8] = {};
#pragma unroll
  for (int s = 0; s < kHeadSplits; ++s) {
    const auto* from = reinterpret_cast<const float4*>(partial + s * size + at);
    const float4 a = from[0], b = from[1];
    sum[0] += a.x, sum[1] += a.y, sum[2] += a.z, sum[3] += a.w;
    sum[4] += b.x, sum[5] += b.y, sum[6] += b.z, sum[7] += b.w;
  }
  Store8(out + at, sum);
}

template <class DwOut>
cudaError_t Head(const LinearCrossEntropyParams<DwOut>& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.chunk < 1 || p.hidden <= 0 || p.hidden % 8 != 0 || p.vocabulary <= 0 ||
      p.vocabulary % 8 != 0) {
    return cudaErrorInvalidValue;
  }
  auto* logits = static_cast<Bf16*>(p.workspace);
  // A short vocabulary has too few blocks to split; sums of one part land in dh directly.
  const bool split = p.vocabulary >= 64 * kHeadSplits * 2;
  const int64_t logits_bytes = CeilDiv(int64_t{p.chunk} * p.vocabulary * 2, 256) * 256;
  auto* partial = reinterpret_cast<float*>(static_cast<char*>(p.workspace) + logits_bytes);
  for (int64_t first = 0; first < p.tokens; first += p.chunk) {
    const int64_t rows = std::min<int64_t>(p.chunk, p.tokens - first);
    const Bf16* h = p.h + first * p.hidden;
    cudaError_t error =
        GroupedLinear({h, p.w, logits, nullptr, rows, 1, p.hidden, p.vocabulary, 0}, stream);
    if (error != cudaSuccess) return error;
    error = CrossEntropy(
        {logits, p.labels + first, p.scale, p.loss + first, rows, p.vocabulary, p.dh != nullptr},
        stream);
    if (error != cudaSuccess) return error;
    if (p.dh == nullptr) continue;
    Bf16* dh = p.dh + first * p.hidden;
    if (split) {
      error = LinearGradSplit({logits, p.w, partial, rows, p.vocabulary, p.hidden, kHeadSplits, 0},
                              stream);
      if (error != cudaSuccess) return error;
      const int64_t size = rows * p.hidden;
      SumSplits<<<static_cast<unsigned>(CeilDiv(size, 8 * 256)), 256, 0, stream>>>(partial, size,
                                                                                   dh);
      error = cudaGetLastError();
    } else {
      error =
          GroupedLinearGrad({logits, p.w, dh, nullptr, rows, 1, p.vocabulary, p.hidden, 0}, stream);
    }
    if (error != cudaSuccess) return error;
    if (p.dw == nullptr) continue;
    error = GroupedWeightGrad(
        GroupedWeightGradParams<DwOut>{logits, h, p.dw, nullptr, rows, 1, p.vocabulary, p.hidden,
                                       p.accumulate || first > 0, 0},
        stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t CrossEntropy(const CrossEntropyParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.rows >= (int64_t{1} << 28) || p.vocabulary <= 0 || p.vocabulary % 8 != 0) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  constexpr int kPiece = 8 * kThreads;
  if (p.vocabulary <= 2 * kPiece) return LaunchRows<1, 2>(p, stream);
  if (p.vocabulary <= 10 * kPiece) return LaunchRows<1, 10>(p, stream);
  if (p.vocabulary <= 40 * kPiece) return LaunchRows<8, 5>(p, stream);
  if (p.vocabulary <= 80 * kPiece) return LaunchRows<8, 10>(p, stream);
  return cudaErrorInvalidValue;
}

cudaError_t LinearCrossEntropy(const LinearCrossEntropyParams<float>& p, cudaStream_t stream) {
  return Head(p, stream);
}
cudaError_t LinearCrossEntropy(const LinearCrossEntropyParams<Bf16>& p, cudaStream_t stream) {
  return Head(p, stream);
}

}  // namespace switchyard::kernels
