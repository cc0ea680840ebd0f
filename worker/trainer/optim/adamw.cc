#include "worker/trainer/optim/adamw.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace switchyard {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// SplitMix64's output function: a counter-based generator when fed key + n * kGolden.
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Weights: load the master, store it back.
struct Fp32Weights {
  float* weight;
  float Load(int64_t i) const { return weight[i]; }
  void Store(int64_t i, float master) const { weight[i] = master; }
};

struct Bf16Weights {
  uint16_t* weight;
  int16_t* remainder;
  float Load(int64_t i) const {
    return FromBits((static_cast<uint32_t>(weight[i]) << 16) +
                    static_cast<uint32_t>(static_cast<int32_t>(remainder[i])));
  }
  void Store(int64_t i, float master) const {
    const uint32_t bits = Bits(master);
    weight[i] = static_cast<uint16_t>((bits + 0x8000u) >> 16);
    remainder[i] = static_cast<int16_t>(bits & 0xFFFFu);
  }
};

// Moments: `random` has 16 fresh bits for each of the two.
struct Fp32Moments {
  static constexpr bool kRandom = false;
  float* m;
  float* v;
  float LoadM(int64_t i) const { return m[i]; }
  float LoadV(int64_t i) const { return v[i]; }
  void Store(int64_t i, float new_m, float new_v, uint64_t) const {
    m[i] = new_m;
    v[i] = new_v;
  }
};

struct Bf16Moments {
  static constexpr bool kRandom = true;
  uint16_t* m;
  uint16_t* v;
  static float Load(uint16_t bits) { return FromBits(static_cast<uint32_t>(bits) << 16); }
  float LoadM(int64_t i) const { return Load(m[i]); }
  float LoadV(int64_t i) const { return Load(v[i]); }
  void Store(int64_t i, float new_m, float new_v, uint64_t random) const {
    // Adds up to one step of the 16-bit grid, then truncates: up with the probability of the
    // remainder. Finite values near the largest may round to infinity, as rounding to nearest does.
    m[i] = static_cast<uint16_t>((Bits(new_m) + (random & 0xFFFFu)) >> 16);
    v[i] = static_cast<uint16_t>((Bits(new_v) + ((random >> 16) & 0xFFFFu)) >> 16);
  }
};

// Scalars of one update, rounded to fp32 where torch rounds them.
struct Coefficients {
  float gradient_scale, weight_keep, l2, beta1_weight, beta2, beta2_weight, sqrt_correction2, eps,
      step_size;
};

template <typename Weights, typename Moments>
void Update(const Weights& weights, const Moments& moments, const float* gradient, int64_t numel,
            const Coefficients& c, uint64_t key, int64_t first_index) {
  at::parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float master = weights.Load(i);
      float g = gradient[i] * c.gradient_scale;
      g += c.l2 * master;
      master *= c.weight_keep;
      const float old_m = moments.LoadM(i);
      const float m = old_m + c.beta1_weight * (g - old_m);
      const float v = moments.LoadV(i) * c.beta2 + c.beta2_weight * g * g;
      const float denominator = std::sqrt(v) / c.sqrt_correction2 + c.eps;
      master -= c.step_size * m / denominator;
      weights.Store(i, master);
      uint64_t random = 0;
      if constexpr (Moments::kRandom) {
        random = Mix(key + static_cast<uint64_t>(first_index + i + 1) * kGolden);
      }
      moments.Store(i, m, v, random);
    }
  });
}

uint16_t* Bits16(at::Tensor& tensor) {
  return reinterpret_cast<uint16_t*>(tensor.mutable_data_ptr<at::BFloat16>());
}

}  // namespace

Adam::Adam(const AdamOptions& options, ShardedParameterStore& store, int ep_rank)
    : options_(options), store_(store), ep_rank_(ep_rank) {
  TORCH_CHECK(options.moment_dtype == at::kFloat || options.moment_dtype == at::kBFloat16,
              "adam: moments must be float32 or bfloat16, got ", options.moment_dtype);
  for (int b = 0; b < store.num_buckets(); ++b) {
    const at::Tensor weight = store.weight_shard(b);
    TORCH_CHECK(weight.is_cpu(), "adam: no update for device ", weight.device(), " yet");
    const bool bf16 = weight.scalar_type() == at::kBFloat16;
    TORCH_CHECK(bf16 || weight.scalar_type() == at::kFloat,
                "adam: weights must be float32 or bfloat16, got ", weight.scalar_type());
    AdamState state;
    state.exp_avg = at::zeros(weight.sizes(), weight.options().dtype(options.moment_dtype));
    state.exp_avg_sq = at::zeros_like(state.exp_avg);
    if (bf16) state.remainder = at::zeros(weight.sizes(), weight.options().dtype(at::kShort));
    states_.push_back(std::move(state));

    const ShardRange range = store.shard_range(b);
    Run run{b, range.begin, range.begin, true};
    for (const TensorSlot& slot : store.layout(b).slots) {
      const int64_t end = std::min(range.end, slot.offset + slot.numel);
      if (end <= run.end) continue;  // before this slice, or after it
      if (slot.decay != run.decay) {
        if (run.end > run.begin) runs_.push_back(run);
        run = {b, run.end, run.end, slot.decay};
      }
      run.end = end;
    }
    TORCH_CHECK(run.end == range.end, "bug: adam: slots of bucket ", store.layout(b).name,
                " end at ", run.end, ", the slice at ", range.end);
    if (run.end > run.begin) runs_.push_back(run);
  }
}

void Adam::Step(int64_t update, double lr, double gradient_scale) {
  const double n = static_cast<double>(update);
  const double correction1 = 1.0 - std::pow(options_.beta1, n);
  const double correction2 = 1.0 - std::pow(options_.beta2, n);
  for (const Run& run : runs_) {
    const int64_t numel = run.end - run.begin;
    const int64_t offset = run.begin - store_.shard_range(run.bucket).begin;
    const double decay = run.decay ? options_.weight_decay : 0.0;
    Coefficients c;
    c.gradient_scale = static_cast<float>(gradient_scale);
    c.weight_keep = static_cast<float>(options_.decoupled ? 1.0 - lr * decay : 1.0);
    c.l2 = static_cast<float>(options_.decoupled ? 0.0 : decay);
    c.beta1_weight = static_cast<float>(1.0 - options_.beta1);
    c.beta2 = static_cast<float>(options_.beta2);
    c.beta2_weight = static_cast<float>(1.0 - options_.beta2);
    c.sqrt_correction2 = static_cast<float>(std::sqrt(correction2));
    c.eps = static_cast<float>(options_.eps);
    c.step_size = static_cast<float>(lr / correction1);

    at::Tensor weight = store_.weight_shard(run.bucket).narrow(0, offset, numel);
    const at::Tensor gradient = store_.gradient_shard(run.bucket).narrow(0, offset, numel);
    AdamState& state = states_[run.bucket];
    at::Tensor m = state.exp_avg.narrow(0, offset, numel);
    at::Tensor v = state.exp_avg_sq.narrow(0, offset, numel);
    const bool expert = store_.layout(run.bucket).kind == BucketKind::kExpert;
    uint64_t key = Mix(options_.seed + kGolden);
    key = Mix(key ^ static_cast<uint64_t>(update));
    key = Mix(key ^ (static_cast<uint64_t>(run.bucket) << 32 |
                     static_cast<uint64_t>(expert ? ep_rank_ : 0)));

    const auto with_moments = [&](const auto& weights) {
      const float* g = gradient.const_data_ptr<float>();
      if (options_.moment_dtype == at::kFloat) {
        Update(weights, Fp32Moments{m.mutable_data_ptr<float>(), v.mutable_data_ptr<float>()}, g,
               numel, c, key, run.begin);
      } else {
        Update(weights, Bf16Moments{Bits16(m), Bits16(v)}, g, numel, c, key, run.begin);
      }
    };
    if (weight.scalar_type() == at::kFloat) {
      with_moments(Fp32Weights{weight.mutable_data_ptr<float>()});
    } else {
      at::Tensor remainder = state.remainder.narrow(0, offset, numel);
      with_moments(Bf16Weights{Bits16(weight), remainder.mutable_data_ptr<int16_t>()});
    }
  }
}

int64_t Adam::state_bytes() const {
  int64_t bytes = 0;
  for (const AdamState& state : states_) {
    bytes += static_cast<int64_t>(state.exp_avg.nbytes() + state.exp_avg_sq.nbytes());
    if (state.remainder.defined()) bytes += static_cast<int64_t>(state.remainder.nbytes());
  }
  return bytes;
}

at::Tensor MasterFromParts(const at::Tensor& weight_bf16, const at::Tensor& remainder) {
  at::Tensor weight = weight_bf16.contiguous(), low = remainder.contiguous();
  at::Tensor master = at::empty(weight.sizes(), weight.options().dtype(at::kFloat));
  const Bf16Weights parts{Bits16(weight), low.mutable_data_ptr<int16_t>()};
  float* out = master.mutable_data_ptr<float>();
  for (int64_t i = 0; i < master.numel(); ++i) out[i] = parts.Load(i);
  return master;
}

void PartsFromMaster(const at::Tensor& master, at::Tensor weight_bf16, at::Tensor remainder) {
  const Bf16Weights parts{Bits16(weight_bf16), remainder.mutable_data_ptr<int16_t>()};
  const float* in = master.const_data_ptr<float>();
  for (int64_t i = 0; i < master.numel(); ++i) parts.Store(i, in[i]);
}

}  // namespace switchyard
