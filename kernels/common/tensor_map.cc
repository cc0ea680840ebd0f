#include "kernels/common/tensor_map.h"

#include <algorithm>

namespace switchyard::kernels {
namespace {

using EncodeFunction = decltype(&cuTensorMapEncodeTiled);

// Through the runtime, so that no binary links libcuda and loads without a driver.
EncodeFunction FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                       cudaEnableDefault, &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    return nullptr;
  }
  return reinterpret_cast<EncodeFunction>(function);
}

cudaError_t Encode(CUtensorMap* map, CUtensorMapDataType type, size_t element_bytes,
                   const void* base, std::initializer_list<int64_t> dims,
                   std::initializer_list<int> box) {
  static const EncodeFunction encode = FindEncode();
  if (encode == nullptr) return cudaErrorNotSupported;
  const int rank = static_cast<int>(dims.size());
  if (rank < 1 || rank > 5 || box.size() != dims.size()) return cudaErrorInvalidValue;
  cuuint64_t sizes[5];
  cuuint64_t strides[5];
  cuuint32_t boxes[5];
  cuuint32_t steps[5];
  cuuint64_t stride_bytes = element_bytes;
  for (int i = 0; i < rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(std::max<int64_t>(dims.begin()[i], 1));
    strides[i] = stride_bytes *= sizes[i];
    boxes[i] = static_cast<cuuint32_t>(box.begin()[i]);
    steps[i] = 1;
  }
  const CUresult result =
      encode(map, type, rank, const_cast<void*>(base), sizes, strides, boxes, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t EncodeTensorMap(CUtensorMap* map, const Bf16* base, std::initializer_list<int64_t> dims,
                            std::initializer_list<int> box) {
  return Encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, sizeof(Bf16), base, dims, box);
}

cudaError_t EncodeTensorMap(CUtensorMap* map, const float* base,
                            std::initializer_list<int64_t> dims, std::initializer_list<int> box) {
  return Encode(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, sizeof(float), base, dims, box);
}

}  // namespace switchyard::kernels
