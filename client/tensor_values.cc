#include "client/tensor_values.h"

#include <string.h>

#include <cmath>

namespace switchyard {
namespace {

uint32_t BitsOf(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FloatOf(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

size_t SizeOf(TensorDtype dtype) { return dtype == TensorDtype::kF32 ? 4 : 2; }

}  // namespace

bool IsFloating(TensorDtype dtype) {
  return dtype == TensorDtype::kBf16 || dtype == TensorDtype::kF16 || dtype == TensorDtype::kF32;
}

uint16_t FloatToBf16(float value) {
  const uint32_t bits = BitsOf(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);  // stays a NaN
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float Bf16ToFloat(uint16_t bits) { return FloatOf(uint32_t{bits} << 16); }

uint16_t FloatToHalf(float value) {
  const uint32_t bits = BitsOf(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    return static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));  // NaN
  }
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and more round to infinity
  if (magnitude >= 0x38800000) {                      // normal: 2^-14 and more
    const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
  }
  // Subnormal: a multiple of 2^-24, which the float addition rounds to.
  const float scaled = FloatOf(magnitude) * 16777216.0f;  // exact: a power of two
  return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(scaled)));
}

float HalfToFloat(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f;
  const uint32_t fraction = bits & 0x3ff;
  if (exponent == 0x1f) return FloatOf(sign | 0x7f800000 | (fraction << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) / 16777216.0f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return FloatOf(sign | ((exponent + 112) << 23) | (fraction << 13));
}

float ElementAt(absl::string_view bytes, TensorDtype dtype, size_t i) {
  if (dtype == TensorDtype::kF32) {
    float value;
    memcpy(&value, bytes.data() + 4 * i, 4);
    return value;
  }
  uint16_t bits;
  memcpy(&bits, bytes.data() + 2 * i, 2);
  return dtype == TensorDtype::kBf16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
}

int64_t ConvertElements(absl::string_view bytes, TensorDtype from, TensorDtype to,
                        std::string& out) {
  const size_t count = bytes.size() / SizeOf(from);
  const size_t start = out.size();
  out.resize(start + count * SizeOf(to));
  char* at = out.data() + start;
  int64_t overflown = 0;
  for (size_t i = 0; i < count; ++i) {
    const float value = ElementAt(bytes, from, i);
    if (to == TensorDtype::kF32) {
      memcpy(at, &value, 4);
      at += 4;
      continue;
    }
    const uint16_t bits = to == TensorDtype::kBf16 ? FloatToBf16(value) : FloatToHalf(value);
    const float back = to == TensorDtype::kBf16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
    overflown += std::isfinite(value) && !std::isfinite(back);
    memcpy(at, &bits, 2);
    at += 2;
  }
  return overflown;
}

}  // namespace switchyard
