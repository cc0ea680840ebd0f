#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/grouped_gemm/kernel.cuh"

namespace switchyard::kernels {

using namespace grouped_gemm;

namespace {

template <class Out>
cudaError_t WeightGrad(const GroupedWeightGradParams<Out>& p, cudaStream_t stream) {
  if (!DimsAreSupported(p.experts, p.max_rows, {p.m, p.n}) ||
      (p.offsets == nullptr && p.experts != 1)) {
    return cudaErrorInvalidValue;
  }
  if (p.max_rows == 0) {
    if (p.accumulate) return cudaSuccess;
    return cudaMemsetAsync(p.out, 0, sizeof(Out) * p.experts * p.m * p.n, stream);
  }
  CUtensorMap map_a, map_b;
  cudaError_t error = EncodeTensorMap(&map_a, p.a, {p.m, p.max_rows}, {64, kTileK});
  if (error != cudaSuccess) return error;
  error = EncodeTensorMap(&map_b, p.b, {p.n, p.max_rows, 1}, {64, kTileK, 1});
  if (error != cudaSuccess) return error;
  OutputMaps maps{};
  const int box = static_cast<int>(128 / sizeof(Out));
  error = EncodeTensorMap(&maps.first, p.out, {p.n, p.m, p.experts}, {box, 16, 1});
  if (error != cudaSuccess) return error;
  KernelParams kernel{};
  kernel.offsets = p.offsets;
  kernel.max_rows = p.max_rows;
  kernel.experts = p.experts;
  kernel.m = p.m;
  kernel.n = p.n;
  kernel.columns = static_cast<int>(CeilDiv(p.n, kTileN));
  kernel.accumulate = p.accumulate;
  return Launch<Product::kWeightGrad, Out>(map_a, map_b, maps, kernel, p.num_sms, stream);
}

}  // namespace

cudaError_t GroupedWeightGrad(const GroupedWeightGradParams<float>& p, cudaStream_t stream) {
  return WeightGrad(p, stream);
}

cudaError_t GroupedWeightGrad(const GroupedWeightGradParams<Bf16>& p, cudaStream_t stream) {
  return WeightGrad(p, stream);
}

}  // namespace switchyard::kernels
