// bfloat16 storage that compiles with and without CUDA, so that contracts and CPU references share
// their parameter structs with the kernels.
#ifndef SWITCHYARD_KERNELS_COMMON_DTYPE_H_
#define SWITCHYARD_KERNELS_COMMON_DTYPE_H_

#include <cstdint>

#if defined(__CUDACC__)
#define SY_HOST_DEVICE __host__ __device__
#else
#define SY_HOST_DEVICE
#endif

namespace switchyard::kernels {

// The upper 16 bits of an IEEE float. Bit-compatible with __nv_bfloat16 and at::BFloat16.
struct alignas(2) Bf16 {
  uint16_t bits;
};

SY_HOST_DEVICE inline uint32_t FloatBits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return __builtin_bit_cast(uint32_t, value);
#endif
}

SY_HOST_DEVICE inline float BitsFloat(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

SY_HOST_DEVICE inline float ToFloat(Bf16 value) {
  return BitsFloat(static_cast<uint32_t>(value.bits) << 16);
}
SY_HOST_DEVICE inline float ToFloat(float value) { return value; }

// Round to nearest, ties to even; a NaN stays a quiet NaN.
SY_HOST_DEVICE inline Bf16 ToBf16(float value) {
  const uint32_t bits = FloatBits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return Bf16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  }
  return Bf16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// The value a float takes after a round trip through bf16.
SY_HOST_DEVICE inline float RoundBf16(float value) { return ToFloat(ToBf16(value)); }

template <class T>
SY_HOST_DEVICE T FromFloat(float value);
template <>
SY_HOST_DEVICE inline float FromFloat<float>(float value) {
  return value;
}
template <>
SY_HOST_DEVICE inline Bf16 FromFloat<Bf16>(float value) {
  return ToBf16(value);
}

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_COMMON_DTYPE_H_
