// AdamW on the CPU: plain loops over slices, which the compiler vectorises.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <cstring>

#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/optim/adamw_update.h"

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

float FromHalf(uint16_t bits) { return FromBits(static_cast<uint32_t>(bits) << 16); }

// Adds up to one step of the 16-bit grid, then truncates: up with the probability of the remainder.
// Finite values near the largest may round to infinity, as rounding to nearest does.
uint16_t RoundStochastic(float value, uint64_t random) {
  return static_cast<uint16_t>((Bits(value) + (random & 0xFFFFu)) >> 16);
}

// Weights: load the master, store it back. `random` has 16 fresh bits for each of the two moments
// and for the weight.
struct Fp32Weights {
  static constexpr bool kRandom = false;
  float* weight;
  float Load(int64_t i) const { return weight[i]; }
  void Store(int64_t i, float master, uint64_t) const { weight[i] = master; }
};

struct MasterWeights {
  static constexpr bool kRandom = false;
  uint16_t* weight;
  int16_t* remainder;
  float Load(int64_t i) const {
    return FromBits((static_cast<uint32_t>(weight[i]) << 16) +
                    static_cast<uint32_t>(static_cast<int32_t>(remainder[i])));
  }
  void Store(int64_t i, float master, uint64_t) const {
    const uint32_t bits = Bits(master);
    weight[i] = static_cast<uint16_t>((bits + 0x8000u) >> 16);
    remainder[i] = static_cast<int16_t>(bits & 0xFFFFu);
  }
};

struct Bf16Weights {
  static constexpr bool kRandom = true;
  uint16_t* weight;
  float Load(int64_t i) const { return FromHalf(weight[i]); }
  void Store(int64_t i, float master, uint64_t random) const {
    weight[i] = RoundStochastic(master, random >> 32);
  }
};

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
  float LoadM(int64_t i) const { return FromHalf(m[i]); }
  float LoadV(int64_t i) const { return FromHalf(v[i]); }
  void Store(int64_t i, float new_m, float new_v, uint64_t random) const {
    m[i] = RoundStochastic(new_m, random);
    v[i] = RoundStochastic(new_v, random >> 16);
  }
};

struct Fp32Gradient {
  const float* data;
  float Load(int64_t i) const { return data[i]; }
};

struct Bf16Gradient {
  const uint16_t* data;
  float Load(int64_t i) const { return FromHalf(data[i]); }
};

template <typename Weights, typename Moments, typename Gradient>
void Update(const Weights& weights, const Moments& moments, const Gradient& gradient, int64_t numel,
            const kernels::AdamWScalars& c, float gradient_scale, uint64_t key,
            int64_t first_index) {
  at::parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float master = weights.Load(i);
      float g = gradient.Load(i) * gradient_scale;
      g += c.l2 * master;
      master *= c.weight_keep;
      const float old_m = moments.LoadM(i);
      const float m = old_m + c.beta1_weight * (g - old_m);
      const float v = moments.LoadV(i) * c.beta2 + c.beta2_weight * g * g;
      const float denominator = std::sqrt(v) / c.sqrt_correction2 + c.eps;
      master -= c.step_size * m / denominator;
      uint64_t random = 0;
      if constexpr (Weights::kRandom || Moments::kRandom) {
        random = kernels::RoundingBits(key, static_cast<uint64_t>(first_index + i));
      }
      weights.Store(i, master, random);
      moments.Store(i, m, v, random);
    }
  });
}

uint16_t* Bits16(const at::Tensor& tensor) {
  return reinterpret_cast<uint16_t*>(tensor.data_ptr<at::BFloat16>());
}

}  // namespace

void UpdateOnCpu(const AdamUpdate& u, float gradient_scale) {
  const auto run = [&](const auto& weights, const auto& moments, const auto& gradient) {
    Update(weights, moments, gradient, u.weight.numel(), u.scalars, gradient_scale, u.key,
           u.first_index);
  };
  const auto with_moments = [&](const auto& weights, const auto& moments) {
    if (u.gradient.scalar_type() == at::kFloat) {
      run(weights, moments, Fp32Gradient{u.gradient.const_data_ptr<float>()});
    } else {
      run(weights, moments, Bf16Gradient{Bits16(u.gradient)});
    }
  };
  const auto with_weights = [&](const auto& weights) {
    if (u.exp_avg.scalar_type() == at::kFloat) {
      with_moments(weights,
                   Fp32Moments{u.exp_avg.data_ptr<float>(), u.exp_avg_sq.data_ptr<float>()});
    } else {
      with_moments(weights, Bf16Moments{Bits16(u.exp_avg), Bits16(u.exp_avg_sq)});
    }
  };
  if (u.weight.scalar_type() == at::kFloat) {
    with_weights(Fp32Weights{u.weight.data_ptr<float>()});
  } else if (u.remainder.defined()) {
    with_weights(MasterWeights{Bits16(u.weight), u.remainder.data_ptr<int16_t>()});
  } else {
    with_weights(Bf16Weights{Bits16(u.weight)});
  }
}

at::Tensor MasterFromParts(const at::Tensor& weight_bf16, const at::Tensor& remainder) {
  const at::Tensor weight = weight_bf16.contiguous(), low = remainder.contiguous();
  at::Tensor master = at::empty(weight.sizes(), weight.options().dtype(at::kFloat));
  const MasterWeights parts{Bits16(weight), low.data_ptr<int16_t>()};
  float* out = master.mutable_data_ptr<float>();
  for (int64_t i = 0; i < master.numel(); ++i) out[i] = parts.Load(i);
  return master;
}

void PartsFromMaster(const at::Tensor& master, at::Tensor weight_bf16, at::Tensor remainder) {
  const MasterWeights parts{Bits16(weight_bf16), remainder.mutable_data_ptr<int16_t>()};
  const float* in = master.const_data_ptr<float>();
  for (int64_t i = 0; i < master.numel(); ++i) parts.Store(i, in[i], 0);
}

}  // namespace switchyard
