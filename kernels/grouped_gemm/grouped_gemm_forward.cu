#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/grouped_gemm/kernel.cuh"

namespace switchyard::kernels {

using namespace grouped_gemm;

cudaError_t GroupedUpProjection(const GroupedUpProjectionParams& p, cudaStream_t stream) {
  if (!DimsAreSupported(p.experts, p.max_rows, {p.hidden, p.ffn}) ||
      (p.offsets == nullptr && p.experts != 1)) {
    return cudaErrorInvalidValue;
  }
  if (p.max_rows == 0) return cudaSuccess;
  CUtensorMap map_a, map_b;
  cudaError_t error = EncodeTensorMap(&map_a, p.x, {p.hidden, p.max_rows}, {kTileK, kTileM});
  if (error != cudaSuccess) return error;
  // Gate and up are a dim of their own: a tile past ffn then reads zeros, not the other half.
  error =
      EncodeTensorMap(&map_b, p.w1, {p.hidden, p.ffn, 2, p.experts}, {kTileK, kTileN / 2, 1, 1});
  if (error != cudaSuccess) return error;
  OutputMaps maps{};
  if (p.z != nullptr) {
    error = EncodeTensorMap(&maps.first, p.z, {p.ffn, 2, p.max_rows}, {kChunk, 1, 16});
    if (error != cudaSuccess) return error;
  }
  error = EncodeTensorMap(&maps.second, p.h, {p.ffn, 1, p.max_rows}, {kChunk, 1, 16});
  if (error != cudaSuccess) return error;
  KernelParams kernel{};
  kernel.offsets = p.offsets;
  kernel.max_rows = p.max_rows;
  kernel.experts = p.experts;
  kernel.k = p.hidden;
  kernel.k_per_split = p.hidden;
  kernel.n = p.ffn;
  kernel.columns = static_cast<int>(CeilDiv(p.ffn, kTileN / 2));
  kernel.swiglu = {p.z, p.h, p.row_weight, p.ffn};
  return Launch<Product::kSwiGlu, Bf16>(map_a, map_b, maps, kernel, p.num_sms, stream);
}

cudaError_t GroupedLinear(const GroupedLinearParams& p, cudaStream_t stream) {
  if (!DimsAreSupported(p.experts, p.max_rows, {p.k, p.n}) ||
      (p.offsets == nullptr && p.experts != 1)) {
    return cudaErrorInvalidValue;
  }
  if (p.max_rows == 0) return cudaSuccess;
  CUtensorMap map_a, map_b;
  cudaError_t error = EncodeTensorMap(&map_a, p.a, {p.k, p.max_rows}, {kTileK, kTileM});
  if (error != cudaSuccess) return error;
  error = EncodeTensorMap(&map_b, p.b, {p.k, p.n, p.experts}, {kTileK, kTileN / 2, 1});
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
  return Launch<Product::kLinear, Bf16>(map_a, map_b, maps, kernel, p.num_sms, stream);
}

}  // namespace switchyard::kernels
