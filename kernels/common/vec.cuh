// 16-byte loads and stores of eight bf16 or four float values, widened to float.
#ifndef SWITCHYARD_KERNELS_COMMON_VEC_CUH_
#define SWITCHYARD_KERNELS_COMMON_VEC_CUH_

#include <cuda_bf16.h>

#include "kernels/common/dtype.h"

namespace switchyard::kernels {

// Two floats to two bf16 in one 32-bit word, round to nearest even; `low` lands at the lower
// address.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

__device__ __forceinline__ float LowBf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float HighBf16(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

__device__ __forceinline__ void Unpack8(const uint4& words, float (&out)[8]) {
  const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = LowBf16(w[i]);
    out[2 * i + 1] = HighBf16(w[i]);
  }
}

__device__ __forceinline__ uint4 Pack8(const float (&in)[8]) {
  return make_uint4(PackBf16(in[0], in[1]), PackBf16(in[2], in[3]), PackBf16(in[4], in[5]),
                    PackBf16(in[6], in[7]));
}

// `p` is 16-byte aligned in all four.
__device__ __forceinline__ uint4 LoadWords(const Bf16* p) {
  return *reinterpret_cast<const uint4*>(p);
}
__device__ __forceinline__ void Load8(const Bf16* p, float (&out)[8]) {
  Unpack8(LoadWords(p), out);
}
__device__ __forceinline__ void StoreWords(Bf16* p, const uint4& words) {
  *reinterpret_cast<uint4*>(p) = words;
}
__device__ __forceinline__ void Store8(Bf16* p, const float (&in)[8]) { StoreWords(p, Pack8(in)); }

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_COMMON_VEC_CUH_
