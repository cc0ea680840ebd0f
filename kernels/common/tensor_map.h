// Tensor maps for the bulk copy engine (TMA) of sm_90: how a box of a row-major tensor lands
// in shared memory with the 128-byte swizzle that wgmma reads.
#ifndef SWITCHYARD_KERNELS_COMMON_TENSOR_MAP_H_
#define SWITCHYARD_KERNELS_COMMON_TENSOR_MAP_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <initializer_list>

#include "kernels/common/dtype.h"

namespace switchyard::kernels {

// Encodes a map over a dense row-major tensor whose dims are given innermost first; box[0] is 128
// bytes (64 bf16 or 32 floats). Reads outside the tensor give zeros, writes there are dropped. At
// most 5 dims, as many in `box`. A dim of 0 is mapped as 1: the caller then never loads from it.
// Errors: cudaErrorInvalidValue: misaligned base or an inner dim that is no multiple of 16 bytes;
// cudaErrorNotSupported: the driver has no tensor maps.
cudaError_t EncodeTensorMap(CUtensorMap* map, const Bf16* base, std::initializer_list<int64_t> dims,
                            std::initializer_list<int> box);
cudaError_t EncodeTensorMap(CUtensorMap* map, const float* base,
                            std::initializer_list<int64_t> dims, std::initializer_list<int> box);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_COMMON_TENSOR_MAP_H_
