#include <cub/device/device_radix_sort.cuh>

#include "kernels/common/vec.cuh"
#include "kernels/embedding/embedding.h"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 8 * kThreads;  // that one block adds

__global__ void __launch_bounds__(kThreads) LookupKernel(const EmbeddingParams p) {
  const int64_t token = blockIdx.x;
  const int64_t id = p.ids[token];
  for (int column = 8 * threadIdx.x; column < p.hidden; column += kColumns) {
    StoreWords(p.out + token * p.hidden + column, LoadWords(p.table + id * p.hidden + column));
  }
}

__global__ void __launch_bounds__(kThreads) NumberKernel(int32_t* values, int64_t size) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < size) values[i] = static_cast<int32_t>(i);
}

// Block (i, c) works when i is the first of its id in the sorted order: it adds that id's rows.
template <class Out>
__global__ void __launch_bounds__(kThreads)
    AddRuns(const EmbeddingGradParams<Out> p, const int32_t* sorted_ids, const int32_t* positions) {
  const int64_t first = blockIdx.x;
  const int32_t id = sorted_ids[first];
  if (id == p.padding_id || (first > 0 && sorted_ids[first - 1] == id)) return;
  const int column = blockIdx.y * kColumns + 8 * threadIdx.x;
  if (column >= p.hidden) return;
  constexpr int kDepth = 4;  // rows in flight
  float sum[8] = {};
  for (int64_t i = first; i < p.tokens && sorted_ids[i] == id; i += kDepth) {
    uint4 words[kDepth];
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const bool same = i + d < p.tokens && sorted_ids[i + d] == id;
      words[d] = same ? LoadWords(p.d_out + int64_t{positions[i + d]} * p.hidden + column)
                      : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      float v[8];
      Unpack8(words[d], v);
#pragma unroll
      for (int c = 0; c < 8; ++c) sum[c] += v[c];
    }
  }
  Out* to = p.d_table + int64_t{id} * p.hidden + column;
  if constexpr (sizeof(Out) == 2) {
    float old[8];
    Load8(to, old);
#pragma unroll
    for (int c = 0; c < 8; ++c) sum[c] += old[c];
    Store8(to, sum);
  } else {
    auto* to4 = reinterpret_cast<float4*>(to);
    const float4 a = to4[0], b = to4[1];
    to4[0] = make_float4(a.x + sum[0], a.y + sum[1], a.z + sum[2], a.w + sum[3]);
    to4[1] = make_float4(b.x + sum[4], b.y + sum[5], b.z + sum[6], b.w + sum[7]);
  }
}

int64_t ArrayBytes(int64_t tokens) { return CeilDiv(tokens * 4, 256) * 256; }

size_t SortBytes(int64_t tokens) {
  size_t bytes = 0;
  const int32_t* in = nullptr;
  int32_t* out = nullptr;
  cub::DeviceRadixSort::SortPairs(nullptr, bytes, in, out, in, out, static_cast<int>(tokens));
  return bytes;
}

template <class Out>
cudaError_t Grad(const EmbeddingGradParams<Out>& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.tokens >= (int64_t{1} << 31) || p.hidden <= 0 || p.hidden % 8 != 0 ||
      p.vocabulary <= 0 || p.workspace_bytes < EmbeddingGradWorkspaceBytes(p.tokens)) {
    return cudaErrorInvalidValue;
  }
  if (p.tokens == 0) return cudaSuccess;
  auto* memory = static_cast<uint8_t*>(p.workspace);
  auto* sorted_ids = reinterpret_cast<int32_t*>(memory);
  auto* numbers = reinterpret_cast<int32_t*>(memory + ArrayBytes(p.tokens));
  auto* positions = reinterpret_cast<int32_t*>(memory + 2 * ArrayBytes(p.tokens));
  NumberKernel<<<static_cast<unsigned>(CeilDiv(p.tokens, kThreads)), kThreads, 0, stream>>>(
      numbers, p.tokens);
  int bits = 1;
  while ((int64_t{1} << bits) < p.vocabulary) ++bits;
  size_t sort_bytes = SortBytes(p.tokens);
  const cudaError_t error = cub::DeviceRadixSort::SortPairs(
      memory + 3 * ArrayBytes(p.tokens), sort_bytes, p.ids, sorted_ids, numbers, positions,
      static_cast<int>(p.tokens), 0, bits, stream);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(p.tokens),
                  static_cast<unsigned>(CeilDiv(p.hidden, kColumns)));
  AddRuns<<<grid, kThreads, 0, stream>>>(p, sorted_ids, positions);
  return cudaGetLastError();
}

}  // namespace

int64_t EmbeddingGradWorkspaceBytes(int64_t tokens) {
  return 3 * ArrayBytes(tokens) + static_cast<int64_t>(SortBytes(tokens));
}

cudaError_t Embedding(const EmbeddingParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.tokens >= (int64_t{1} << 31) || p.hidden <= 0 || p.hidden % 8 != 0) {
    return cudaErrorInvalidValue;
  }
  if (p.tokens == 0) return cudaSuccess;
  LookupKernel<<<static_cast<unsigned>(p.tokens), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t EmbeddingGrad(const EmbeddingGradParams<float>& p, cudaStream_t s) {
  return Grad(p, s);
}
cudaError_t EmbeddingGrad(const EmbeddingGradParams<Bf16>& p, cudaStream_t s) { return Grad(p, s); }

}  // namespace switchyard::kernels
