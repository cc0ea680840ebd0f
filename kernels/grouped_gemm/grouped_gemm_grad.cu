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
  KernelParams kernel{};
  kernel.offsets = p.offsets;
  kernel.max_rows = p.max_rows;
  kernel.experts = p.experts;
  kernel.k = p.k;
  kernel.n = p.n;
  kernel.columns = static_cast<int>(CeilDiv(p.n, kTileN));
  kernel.out = p.out;
  return Launch<Product::kLinearGrad, Bf16>(map_a, map_b, kernel, p.num_sms, stream);
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
  KernelParams kernel{};
  kernel.offsets = p.offsets;
  kernel.max_rows = p.max_rows;
  kernel.experts = p.experts;
  kernel.k = p.hidden;
  kernel.n = p.ffn;
  kernel.columns = static_cast<int>(CeilDiv(p.ffn, kTileN));
  kernel.swiglu_grad = {p.z, p.dz, p.h, p.dp_partial, p.row_weight, p.ffn};
  return Launch<Product::kDownGrad, Bf16>(map_a, map_b, kernel, p.num_sms, stream);
}

}  // namespace switchyard::kernels
