#include "kernels/common/reduce.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/router_topk/router_topk.h"

namespace switchyard::kernels {
namespace {

constexpr int kMaxExperts = 512;
constexpr int kMaxTopK = 16;
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

// Lane l holds experts l, l + 32, ...: kPer of them, -infinity where there is none.
template <int kPer>
__device__ __forceinline__ void LoadRow(const Bf16* row, int experts, float (&z)[kPer]) {
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int e = static_cast<int>(threadIdx.x % 32) + 32 * i;
    z[i] = e < experts ? ToFloat(row[e]) : -INFINITY;
  }
}
template <int kPer>
__device__ __forceinline__ void Softmax(const float (&z)[kPer], float (&p)[kPer]) {
  float max = z[0];
#pragma unroll
  for (int i = 1; i < kPer; ++i) max = fmaxf(max, z[i]);
  max = WarpMax(max);
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kPer; ++i) sum += p[i] = __expf(z[i] - max);
  const float scale = 1.f / WarpSum(sum);
#pragma unroll
  for (int i = 0; i < kPer; ++i) p[i] *= scale;
}

// A block counts one segment: its warps take its tokens in turn. counts and mass are the segment's
// rows of the workspace; each warp's mass is added in the order of the warps.
template <int kPer>
__global__ void __launch_bounds__(kThreads)
    ChooseKernel(const RouterTopKParams p, int32_t* counts, float* mass) {
  __shared__ int32_t count[kMaxExperts];
  __shared__ float warp_mass[kWarps][32 * kPer];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  for (int e = threadIdx.x; e < p.experts; e += kThreads) count[e] = 0;
  __syncthreads();
  float my_mass[kPer] = {};
  for (int i = warp; i < kRouterSegment; i += kWarps) {
    const int64_t token = int64_t{blockIdx.x} * kRouterSegment + i;
    if (token >= p.tokens) break;
    float z[kPer], prob[kPer];
    LoadRow(p.logits + token * p.experts, p.experts, z);
    Softmax(z, prob);
#pragma unroll
    for (int j = 0; j < kPer; ++j) my_mass[j] += prob[j];
    float chosen = 0.f;
    int chosen_id = 0;
    float sum = 0.f;
    for (int k = 0; k < p.top_k; ++k) {
      // The largest logit left; the lower expert among equals. NaN never wins: such a row still
      // gets valid ids, and the loss shows the NaN.
      float best = -INFINITY;
      int best_id = kMaxExperts;
      float best_prob = 0.f;
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const int e = lane + 32 * j;
        if (e < p.experts && (z[j] > best || best_id == kMaxExperts) &&
            !isnan(prob[j] * 0.f + z[j])) {
          best = z[j];
          best_id = e;
          best_prob = prob[j];
        }
      }
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, best, mask);
        const int other_id = __shfl_xor_sync(0xffffffffu, best_id, mask);
        const float other_prob = __shfl_xor_sync(0xffffffffu, best_prob, mask);
        if (other > best || (other == best && other_id < best_id)) {
          best = other;
          best_id = other_id;
          best_prob = other_prob;
        }
      }
      if (best_id >= p.experts) best_id = k;  // nothing but NaN
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        if (lane + 32 * j == best_id) z[j] = NAN;
      }
      if (lane == k) {
        chosen = best_prob;
        chosen_id = best_id;
      }
      sum += best_prob;
    }
    if (lane < p.top_k) {
      const float weight = p.normalize ? chosen / sum : chosen;
      p.ids[token * p.top_k + lane] = chosen_id;
      p.weights[token * p.top_k + lane] = p.round_weights ? RoundBf16(weight) : weight;
      atomicAdd(&count[chosen_id], 1);  // of integers: any order gives the same
    }
  }
#pragma unroll
  for (int j = 0; j < kPer; ++j) warp_mass[warp][lane + 32 * j] = my_mass[j];
  __syncthreads();
  for (int e = threadIdx.x; e < p.experts; e += kThreads) {
    counts[int64_t{blockIdx.x} * p.experts + e] = count[e];
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += warp_mass[w][e];
    mass[int64_t{blockIdx.x} * p.experts + e] = sum;
  }
}

// One block per expert: turns the expert's counts per segment into running sums, and leaves its
// total and mass in row `segments`.
__global__ void __launch_bounds__(kThreads)
    ScanSegments(int32_t* counts, float* mass, int segments, int experts) {
  __shared__ int32_t warp_sum[kWarps];
  __shared__ float shared[32];
  const int expert = blockIdx.x;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int32_t running = 0;
  float my_mass = 0.f;
  for (int base = 0; base < segments; base += kThreads) {
    const int segment = base + threadIdx.x;
    const int64_t at = int64_t{segment} * experts + expert;
    const int32_t count = segment < segments ? counts[at] : 0;
    if (segment < segments) my_mass += mass[at];
    int32_t sum = count;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int32_t below = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += below;
    }
    if (lane == 31) warp_sum[warp] = sum;
    __syncthreads();
    int32_t before = running;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += warp_sum[w];
      running += warp_sum[w];
    }
    if (segment < segments) counts[at] = before + sum - count;
    __syncthreads();
  }
  const float total = BlockSum(my_mass, shared);
  if (threadIdx.x == 0) {
    counts[int64_t{segments} * experts + expert] = running;
    mass[int64_t{segments} * experts + expert] = total;
  }
}

// One block: offsets by a scan over the experts' totals.
__global__ void __launch_bounds__(kMaxExperts)
    FinishLayout(const RouterTopKParams p, const int32_t* totals, const float* mass) {
  __shared__ int32_t sums[kMaxExperts];
  const int e = threadIdx.x;
  const int32_t count = e < p.experts ? totals[e] : 0;
  sums[e] = count;
  __syncthreads();
  for (int step = 1; step < kMaxExperts; step *= 2) {
    const int32_t below = e >= step ? sums[e - step] : 0;
    __syncthreads();
    sums[e] += below;
    __syncthreads();
  }
  if (e < p.experts) p.offsets[e + 1] = sums[e];
  if (e == 0) p.offsets[0] = 0;
  if (p.prob_sums != nullptr && e < p.experts) p.prob_sums[e] = mass[e];
}

// One warp per segment gives its copies their rows, 32 copies at a time, in order.
__global__ void __launch_bounds__(kThreads)
    PlaceKernel(const RouterTopKParams p, const int32_t* before) {
  extern __shared__ int32_t next_rows[];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int64_t segment = int64_t{blockIdx.x} * kWarps + warp;
  const int64_t first = segment * kRouterSegment * p.top_k;
  const int64_t copies = p.tokens * p.top_k;
  if (first >= copies) return;
  int32_t* next = next_rows + warp * p.experts;
  for (int e = lane; e < p.experts; e += 32)
    next[e] = p.offsets[e] + before[segment * p.experts + e];
  __syncwarp();
  for (int base = 0; base < kRouterSegment * p.top_k; base += 32) {
    const int64_t n = first + base + lane;
    const bool live = base + lane < kRouterSegment * p.top_k && n < copies;
    const int id = live ? p.ids[n] : -1 - lane;  // dead lanes match nobody
    const unsigned same = __match_any_sync(0xffffffffu, id);
    const int rank = __popc(same & ((1u << lane) - 1));
    const int32_t row = live ? next[id] : 0;
    __syncwarp();
    if (live) p.row_of[n] = row + rank;
    if (live && rank == 0) next[id] = row + __popc(same);
    __syncwarp();
  }
}

template <int kPer>
__global__ void __launch_bounds__(kThreads) GradKernel(const RouterTopKGradParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (token >= p.tokens) return;
  float z[kPer], prob[kPer], d[kPer];
  LoadRow(p.logits + token * p.experts, p.experts, z);
  Softmax(z, prob);
#pragma unroll
  for (int j = 0; j < kPer; ++j) {
    const int e = lane + 32 * j;
    d[j] = p.d_prob != nullptr && e < p.experts ? p.d_prob[e] : 0.f;
  }
  const int my_id = lane < p.top_k ? p.ids[token * p.top_k + lane] : -1;
  const float my_grad = lane < p.top_k ? p.d_weights[token * p.top_k + lane] : 0.f;
  float sum = 0.f, inner = 0.f;
  for (int k = 0; k < p.top_k; ++k) {
    const int id = __shfl_sync(0xffffffffu, my_id, k);
    const float grad = __shfl_sync(0xffffffffu, my_grad, k);
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (lane + 32 * j == id) {
        sum += prob[j];
        inner += prob[j] * grad;
      }
    }
  }
  sum = WarpSum(sum);
  inner = WarpSum(inner) / sum;
  for (int k = 0; k < p.top_k; ++k) {
    const int id = __shfl_sync(0xffffffffu, my_id, k);
    const float grad = __shfl_sync(0xffffffffu, my_grad, k);
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (lane + 32 * j == id) d[j] += p.normalize ? (grad - inner) / sum : grad;
    }
  }
  float dot = 0.f;
#pragma unroll
  for (int j = 0; j < kPer; ++j) dot += prob[j] * d[j];
  dot = WarpSum(dot);
#pragma unroll
  for (int j = 0; j < kPer; ++j) {
    const int e = lane + 32 * j;
    if (e < p.experts) p.d_logits[token * p.experts + e] = ToBf16(prob[j] * (d[j] - dot));
  }
}

// Calls launch.operator()<experts per lane>().
template <class Launch>
void Dispatch(int experts, const Launch& launch) {
  if (experts <= 64) return launch.template operator()<2>();
  if (experts <= 128) return launch.template operator()<4>();
  if (experts <= 256) return launch.template operator()<8>();
  return launch.template operator()<16>();
}

bool IsSupported(int64_t tokens, int experts, int top_k) {
  return tokens >= 0 && tokens * top_k < (int64_t{1} << 31) && experts >= 1 &&
         experts <= kMaxExperts && top_k >= 1 && top_k <= kMaxTopK && top_k <= experts;
}

}  // namespace

cudaError_t RouterTopK(const RouterTopKParams& p, cudaStream_t stream) {
  if (!IsSupported(p.tokens, p.experts, p.top_k)) return cudaErrorInvalidValue;
  const auto segments = static_cast<int>(CeilDiv(p.tokens, kRouterSegment));
  auto* counts = static_cast<int32_t*>(p.workspace);
  auto* mass = reinterpret_cast<float*>(counts + int64_t{segments + 1} * p.experts);
  if (segments > 0) {
    Dispatch(p.experts, [&]<int kPer>() {
      ChooseKernel<kPer><<<segments, kThreads, 0, stream>>>(p, counts, mass);
    });
  }
  ScanSegments<<<p.experts, kThreads, 0, stream>>>(counts, mass, segments, p.experts);
  const int64_t totals = int64_t{segments} * p.experts;
  FinishLayout<<<1, kMaxExperts, 0, stream>>>(p, counts + totals, mass + totals);
  if (segments > 0) {
    const auto blocks = static_cast<unsigned>(CeilDiv(segments, kWarps));
    PlaceKernel<<<blocks, kThreads, kWarps * p.experts * sizeof(int32_t), stream>>>(p, counts);
  }
  return cudaGetLastError();
}

cudaError_t RouterTopKGrad(const RouterTopKGradParams& p, cudaStream_t stream) {
  if (!IsSupported(p.tokens, p.experts, p.top_k)) return cudaErrorInvalidValue;
  if (p.tokens == 0) return cudaSuccess;
  Dispatch(p.experts, [&]<int kPer>() {
    GradKernel<kPer><<<static_cast<unsigned>(CeilDiv(p.tokens, kWarps)), kThreads, 0, stream>>>(p);
  });
  return cudaGetLastError();
}

}  // namespace switchyard::kernels
