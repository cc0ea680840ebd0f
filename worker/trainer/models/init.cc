#include "worker/trainer/models/init.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"

namespace switchyard {
namespace {

// SplitMix64's output function: a bijection that mixes all bits of its argument.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// FNV-1a.
uint64_t HashName(absl::string_view name) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return hash;
}

// One standard normal value for (key, index), by Box and Muller's transform of two uniforms.
float Normal(uint64_t key, uint64_t index) {
  constexpr double kTwoPi = 6.283185307179586;
  const uint64_t a = Mix(key ^ Mix(2 * index));
  const uint64_t b = Mix(key ^ Mix(2 * index + 1));
  const double u = static_cast<double>((a >> 11) + 1) * 0x1p-53;  // (0, 1]
  const double v = static_cast<double>(b >> 11) * 0x1p-53;        // [0, 1)
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(kTwoPi * v));
}

enum class Rule { kOne, kZero, kNormal };

Rule RuleFor(const TensorSlot& slot) {
  if (absl::EndsWith(slot.name, "norm.weight")) return Rule::kOne;
  if (absl::EndsWith(slot.name, ".bias")) return Rule::kZero;
  return Rule::kNormal;
}

bool InPaddingRow(const ModelConfig& config, const TensorSlot& slot, int64_t index) {
  return config.pad_token_id >= 0 && slot.name == "model.embed_tokens.weight" &&
         index / config.hidden_size == config.pad_token_id;
}

template <typename T>
void Fill(const ModelConfig& config, const BucketLayout& bucket, uint64_t seed, int64_t begin,
          int64_t end, T* out) {
  std::fill(out, out + (end - begin), T(0));
  for (const TensorSlot& slot : bucket.slots) {
    const int64_t first = std::max(begin, slot.offset);
    const int64_t last = std::min(end, slot.offset + slot.numel);
    const Rule rule = RuleFor(slot);
    if (first >= last || rule == Rule::kZero) continue;
    const uint64_t key = Mix(seed ^ Mix(HashName(slot.name)));
    const float range = static_cast<float>(config.initializer_range);
    for (int64_t i = first; i < last; ++i) {
      const int64_t index = i - slot.offset;
      if (rule == Rule::kOne) {
        out[i - begin] = T(1);
      } else if (!InPaddingRow(config, slot, index)) {
        out[i - begin] = static_cast<T>(range * Normal(key, static_cast<uint64_t>(index)));
      }
    }
  }
}

int64_t Signed(uint64_t value) { return static_cast<int64_t>(value); }

at::Tensor ShiftRight(const at::Tensor& x, int64_t bits) {
  return at::bitwise_and(at::bitwise_right_shift(x, bits),
                         at::Scalar(Signed(~uint64_t{0} >> bits)));
}

// Mix of each element; int64 arithmetic wraps as uint64's does.
at::Tensor MixAll(const at::Tensor& x) {
  at::Tensor y = x + Signed(0x9E3779B97F4A7C15u);
  y = at::bitwise_xor(y, ShiftRight(y, 30)).mul_(Signed(0xBF58476D1CE4E5B9u));
  y = at::bitwise_xor(y, ShiftRight(y, 27)).mul_(Signed(0x94D049BB133111EBu));
  return at::bitwise_xor(y, ShiftRight(y, 31));
}

// Normal of indices [first, first + n), float32.
at::Tensor NormalRange(uint64_t key, int64_t first, int64_t n, const at::TensorOptions& options) {
  constexpr double kTwoPi = 6.283185307179586;
  const at::Tensor even = at::arange(2 * first, 2 * (first + n), 2, options.dtype(at::kLong));
  const auto uniform = [&](const at::Tensor& counter) {
    const at::Tensor bits = MixAll(at::bitwise_xor(MixAll(counter), at::Scalar(Signed(key))));
    return ShiftRight(bits, 11).to(at::kDouble);
  };
  const at::Tensor u = uniform(even).add_(1.0).mul_(0x1p-53);
  const at::Tensor v = uniform(even + 1).mul_(0x1p-53);
  return (u.log_().mul_(-2.0).sqrt_() * v.mul_(kTwoPi).cos_()).to(at::kFloat);
}

}  // namespace

void InitializeBucketByOperations(const ModelConfig& config, const BucketLayout& bucket,
                                  uint64_t seed, int64_t begin, at::Tensor flat) {
  constexpr int64_t kAtOnce = int64_t{8}
                              << 20;  // elements; about 100 bytes each while they are made
  const int64_t end = begin + flat.numel();
  flat.zero_();
  for (const TensorSlot& slot : bucket.slots) {
    const int64_t first = std::max(begin, slot.offset);
    const int64_t last = std::min(end, slot.offset + slot.numel);
    const Rule rule = RuleFor(slot);
    if (first >= last || rule == Rule::kZero) continue;
    if (rule == Rule::kOne) {
      flat.narrow(0, first - begin, last - first).fill_(1);
      continue;
    }
    const uint64_t key = Mix(seed ^ Mix(HashName(slot.name)));
    const auto range = static_cast<double>(static_cast<float>(config.initializer_range));
    for (int64_t i = first; i < last; i += kAtOnce) {
      const int64_t n = std::min(kAtOnce, last - i);
      flat.narrow(0, i - begin, n)
          .copy_(NormalRange(key, i - slot.offset, n, flat.options()).mul_(range));
    }
    const int64_t row = slot.offset + config.pad_token_id * config.hidden_size;
    if (!InPaddingRow(config, slot, row - slot.offset)) continue;
    const int64_t row_first = std::max(row, first);
    const int64_t row_last = std::min(row + config.hidden_size, last);
    if (row_first < row_last) flat.narrow(0, row_first - begin, row_last - row_first).zero_();
  }
}

void InitializeBucket(const ModelConfig& config, const BucketLayout& bucket, uint64_t seed,
                      int64_t begin, at::Tensor flat) {
  TORCH_CHECK(flat.dim() == 1 && flat.is_contiguous() && begin >= 0, "init: bucket ", bucket.name,
              " from ", begin, ": buffer must be 1-D and contiguous, got ", flat.sizes());
  if (!flat.is_cpu()) {
    InitializeBucketByOperations(config, bucket, seed, begin, flat);
    return;
  }
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, flat.scalar_type(), "InitializeBucket", [&] {
    Fill(config, bucket, seed, begin, begin + flat.numel(), flat.mutable_data_ptr<scalar_t>());
  });
}

}  // namespace switchyard
