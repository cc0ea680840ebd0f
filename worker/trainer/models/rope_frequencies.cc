#include "worker/trainer/models/rope_frequencies.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace switchyard {
namespace {

constexpr double kPi = 3.14159265358979323846;

double YarnScale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double YarnAttentionScale(const RopeConfig& rope) {
  if (rope.attention_factor != 0) return rope.attention_factor;
  if (rope.mscale != 0 && rope.mscale_all_dim != 0) {
    return YarnScale(rope.factor, rope.mscale) / YarnScale(rope.factor, rope.mscale_all_dim);
  }
  return YarnScale(rope.factor, 1.0);
}

at::Tensor Yarn(const RopeConfig& rope, const at::Tensor& wavelengths_r, int64_t dim) {
  // The channel whose angle turns `rotations` times over the original context.
  const auto channel = [&](double rotations) {
    return static_cast<double>(dim) *
           std::log(static_cast<double>(rope.original_max_position_embeddings) /
                    (rotations * 2 * kPi)) /
           (2 * std::log(rope.theta));
  };
  double low = channel(rope.beta_fast);
  double high = channel(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  const at::Tensor ramp_r =
      ((at::arange(dim / 2, wavelengths_r.options()) - low) / (high - low)).clamp(0, 1);
  const at::Tensor keep_r = 1 - ramp_r;
  return 1.0 / (wavelengths_r * rope.factor) * (1 - keep_r) + 1.0 / wavelengths_r * keep_r;
}

at::Tensor Llama3(const RopeConfig& rope, const at::Tensor& inverse_r) {
  const double old = static_cast<double>(rope.original_max_position_embeddings);
  const at::Tensor wavelength_r = 2 * kPi / inverse_r;
  const at::Tensor is_long = wavelength_r > old / rope.low_freq_factor;
  const at::Tensor is_short = wavelength_r < old / rope.high_freq_factor;
  const at::Tensor scaled_r = at::where(is_long, inverse_r / rope.factor, inverse_r);
  const at::Tensor smooth_r =
      (old / wavelength_r - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor blended_r = (1 - smooth_r) * scaled_r / rope.factor + smooth_r * scaled_r;
  return at::where(is_long.logical_or(is_short), scaled_r, blended_r);
}

}  // namespace

RopeFrequencies ComputeRopeFrequencies(const RopeConfig& rope, int64_t head_dim) {
  const int64_t dim =
      static_cast<int64_t>(static_cast<double>(head_dim) * rope.partial_rotary_factor);
  const at::Tensor wavelengths_r =
      at::pow(rope.theta, at::arange(0, dim, 2, at::TensorOptions().dtype(at::kFloat)) /
                              static_cast<double>(dim));
  const at::Tensor inverse_r = 1.0 / wavelengths_r;
  switch (rope.type) {
    case RopeType::kDefault:
      return {inverse_r, 1.0};
    case RopeType::kLinear:
      return {inverse_r / rope.factor, 1.0};
    case RopeType::kYarn:
      return {Yarn(rope, wavelengths_r, dim), YarnAttentionScale(rope)};
    case RopeType::kLlama3:
      return {Llama3(rope, inverse_r), 1.0};
  }
  TORCH_CHECK(false, "bug: rope type ", static_cast<int>(rope.type));
}

}  // namespace switchyard
