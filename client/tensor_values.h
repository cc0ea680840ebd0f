// Elements of tensors as numbers: bfloat16, IEEE half and single precision, host byte order.
#ifndef SWITCHYARD_CLIENT_TENSOR_VALUES_H_
#define SWITCHYARD_CLIENT_TENSOR_VALUES_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "worker/trainer/checkpoint/safetensors.h"

namespace switchyard {

// BF16, F16 or F32: what can be converted and compared as numbers.
bool IsFloating(TensorDtype dtype);

// To the nearest, ties to even; NaN stays NaN, beyond the range is infinite.
uint16_t FloatToBf16(float value);
uint16_t FloatToHalf(float value);
float Bf16ToFloat(uint16_t bits);
float HalfToFloat(uint16_t bits);  // exact

// The i-th element; `bytes` need not be aligned. Only floating dtypes.
float ElementAt(absl::string_view bytes, TensorDtype dtype, size_t i);

// Appends the elements of `bytes` to `out` as `to`. Answers how many were finite and are not any
// more. Only floating dtypes.
int64_t ConvertElements(absl::string_view bytes, TensorDtype from, TensorDtype to,
                        std::string& out);

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_TENSOR_VALUES_H_
