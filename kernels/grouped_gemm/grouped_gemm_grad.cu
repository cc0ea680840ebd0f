#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/grouped_gemm/kernel.cuh"

namespace switchyard::kernels {

using namespace grouped_gemm;

cudaError_t GroupedLinearGrad(const GroupedLinearGradParams& p, cudaStream_t stream) {
  if (!DimsAreSupported(p.experts, p.max_rows, {p.k, p.n}) ||
      (p.offsets == nullptr && p.experts != 1)) {
    return cudaErrorInvalidValue;
  }
  if (p.max_rows == 0) return cudaSuccess;
  CUtensorMap map_a, map_b;
  cudaError_t error = EncodeTensorMap(&map_a, p.a, {p.k, p.max_rows}, {kTileK, kTileM});
  if (error != cudaSuccess) return error;
  error = EncodeTensorMap(&map_b, p.b, {p.n, p.k, p.experts}, {64, kTileK, 1});
  if (error != cudaSuccess) return error;
  OutputMaps maps{};
  error = EncodeTensorMap(&maps.first, p.out, {p.n, 1, p.max_rows}, {kChunk, 1, 16});
  if (error != cudaSuccess) return error;
  KernelParams kernel{};
  kernel.offsets = p.offsets;
  kernel.max_rows = p.max_rows;
  kernel.experts = p.experts;
  kernel.k = p.k;
  kernel.k_per_split = p.k;
  kernel.n = p.n;
  kernel.columns = static_cast<int>(CeilDiv(p.n, kTileN));
  kernel.out = p.out;
  return Launch<Product::kLinearGrad, Bf16>(map_a, map_b, maps, kernel, p.num_sms, stream);
}

cudaError_t LinearGradSplit(const LinearGradSplitParams& p, cudaStream_t stream) {
  if (!DimsAreSupported(1, p.rows, {p.k, p.n}) || p.splits < 1) return cudaErrorInvalidValue;
  const int k_per_split = static_cast<int>(CeilDiv(CeilDiv(p.k, p.splits), kTileK)) * kTileK;
  // Every split must have something to sum, or its part of `partial` would stay unwritten.
  if (CeilDiv(p.k, k_per_split) != p.splits) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  CUtensorMap map_a, map_b;
  cudaError_t error = EncodeTensorMap(&map_a, p.a, {p.k, p.rows}, {kTileK, kTileM});
  if (error != cudaSuccess) return error;
  error = EncodeTensorMap(&map_b, p.b, {p.n, p.k, 1}, {64, kTileK, 1});
  if (error != cudaSuccess) return error;
  OutputMaps maps{};
  error = EncodeTensorMap(&maps.first, p.partial, {p.n, p.rows, p.splits}, {32, 16, 1});
  if (error != cudaSuccess) return error;
  KernelParams kernel{};
  kernel.max_rows = p.rows;
  kernel.experts = 1;
  kernel.k = p.k;
  kernel.k_per_split = k_per_split;
  kernel.n = p.n;
  kernel.columns = static_cast<int>(CeilDiv(p.n, kTileN));
  return Launch<Product::kLinearGrad, float>(map_a, map_b, maps, kernel, p.num_sms, stream);
}

cudaError_t GroupedDownGrad(const GroupedDownGradParams& p, cudaStream_t stream) {
  static_assert(kDownGradColumns == kTileN, "one partial sum of dp per column tile");
  if (!DimsAreSupported(p.experts, p.max_rows, {p.hidden, p.ffn}) ||
      (p.offsets == nullptr && p.experts != 1)) {
    return cudaErrorInvalidValue;
  }
  if (p.max_rows == 0) return cudaSuccess;
  CUtensorMap map_a, map_b;
  cudaError_t error = EncodeTensorMap(&map_a, p.dy, {p.hidden, p.max_rows}, {kTileK, kTileM});
  if (error != cudaSuccess) return error;
  error = EncodeTensorMap(&map_b, p.w2, {p.ffn, p.hidden, p.experts}, {64, kTileK, 1});
  if (error != cudaSuccess) return error;
  OutputMaps maps{};
  error = EncodeTensorMap(&maps.z, p.z, {p.ffn, 2, p.max_rows}, {kChunk, 1, 16});
  if (error != cudaSuccess) return error;
  error = EncodeTensorMap(&maps.first, p.dz, {p.ffn, 2, p.max_rows}, {kChunk, 1, 16});
  if (error != cudaSuccess) return error;
  if (p.h != nullptr) {
    error = EncodeTensorMap(&maps.second, p.h, {p.ffn, 1, p.max_rows}, {kChunk, 1, 16});
    if (error != cudaSuccess) return error;
  }
  KernelParams kernel{};
  kernel.offsets = p.offsets;
  kernel.max_rows = p.max_rows;
  kernel.experts = p.experts;
  kernel.k = p.hidden;
  kernel.k_per_split = p.hidden;
  kernel.n = p.ffn;
  kernel.columns = static_cast<int>(CeilDiv(p.ffn, kTileN));
  kernel.swiglu_grad = {p.dz, p.h, p.dp_partial, p.row_weight, p.ffn};
  return Launch<Product::kDownGrad, Bf16>(map_a, map_b, maps, kernel, p.num_sms, stream);
}

}  // namespace switchyard::kernels
