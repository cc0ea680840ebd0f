#include "worker/trainer/optim/adamw.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "worker/trainer/optim/adamw_update.h"

namespace switchyard {
namespace {

// SplitMix64's output function, fed key + n * kGolden, as in kernels::RoundingBits.
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

Adam::Adam(const AdamOptions& options, ShardedParameterStore& store, int ep_rank)
    : options_(options), store_(store), ep_rank_(ep_rank) {
  TORCH_CHECK(options.moment_dtype == at::kFloat || options.moment_dtype == at::kBFloat16,
              "adam: moments must be float32 or bfloat16, got ", options.moment_dtype);
  for (int b = 0; b < store.num_buckets(); ++b) {
    const at::Tensor weight = store.weight_slice(b);
    const bool bf16 = weight.scalar_type() == at::kBFloat16;
    TORCH_CHECK(bf16 || weight.scalar_type() == at::kFloat,
                "adam: weights must be float32 or bfloat16, got ", weight.scalar_type());
    AdamState state;
    state.exp_avg = at::zeros(weight.sizes(), weight.options().dtype(options.moment_dtype));
    state.exp_avg_sq = at::zeros_like(state.exp_avg);
    if (bf16 && options.exact_master) {
      state.remainder = at::zeros(weight.sizes(), weight.options().dtype(at::kShort));
    }
    slices_.push_back(std::move(state));

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
    run.end = range.begin + weight.numel();  // with the padding, whose zeros stay zeros
    if (run.end > run.begin) runs_.push_back(run);
  }
}

AdamState Adam::state(int bucket) const {
  const int64_t numel = store_.shard_range(bucket).numel();
  const AdamState& slice = slices_.at(bucket);
  AdamState state{slice.exp_avg.narrow(0, 0, numel), slice.exp_avg_sq.narrow(0, 0, numel), {}};
  if (slice.remainder.defined()) state.remainder = slice.remainder.narrow(0, 0, numel);
  return state;
}

void Adam::Step(int64_t update, double lr, const UpdateControl& control) {
  const double n = static_cast<double>(update);
  const double correction1 = 1.0 - std::pow(options_.beta1, n);
  const double correction2 = 1.0 - std::pow(options_.beta2, n);
  for (const Run& run : runs_) {
    const int64_t numel = run.end - run.begin;
    const int64_t offset = run.begin - store_.shard_range(run.bucket).begin;
    const double decay = run.decay ? options_.weight_decay : 0.0;
    AdamUpdate u;
    u.scalars.weight_keep = static_cast<float>(options_.decoupled ? 1.0 - lr * decay : 1.0);
    u.scalars.l2 = static_cast<float>(options_.decoupled ? 0.0 : decay);
    u.scalars.beta1_weight = static_cast<float>(1.0 - options_.beta1);
    u.scalars.beta2 = static_cast<float>(options_.beta2);
    u.scalars.beta2_weight = static_cast<float>(1.0 - options_.beta2);
    u.scalars.sqrt_correction2 = static_cast<float>(std::sqrt(correction2));
    u.scalars.eps = static_cast<float>(options_.eps);
    u.scalars.step_size = static_cast<float>(lr / correction1);

    const AdamState& state = slices_[run.bucket];
    u.weight = store_.weight_slice(run.bucket).narrow(0, offset, numel);
    u.gradient = store_.gradient_slice(run.bucket).narrow(0, offset, numel);
    u.exp_avg = state.exp_avg.narrow(0, offset, numel);
    u.exp_avg_sq = state.exp_avg_sq.narrow(0, offset, numel);
    if (state.remainder.defined()) u.remainder = state.remainder.narrow(0, offset, numel);
    const bool expert = store_.layout(run.bucket).kind == BucketKind::kExpert;
    u.key = Mix(options_.seed + kGolden);
    u.key = Mix(u.key ^ static_cast<uint64_t>(update));
    u.key = Mix(u.key ^ (static_cast<uint64_t>(run.bucket) << 32 |
                         static_cast<uint64_t>(expert ? ep_rank_ : 0)));
    u.first_index = run.begin;
    if (u.weight.is_cuda()) {
      UpdateOnCuda(u, control);
    } else if (control.apply) {
      UpdateOnCpu(u, static_cast<float>(control.scale));
    }
  }
}

int64_t Adam::state_bytes() const {
  int64_t bytes = 0;
  for (const AdamState& state : slices_) {
    bytes += static_cast<int64_t>(state.exp_avg.nbytes() + state.exp_avg_sq.nbytes());
    if (state.remainder.defined()) bytes += static_cast<int64_t>(state.remainder.nbytes());
  }
  return bytes;
}

#if !defined(SY_CUDA)
void UpdateOnCuda(const AdamUpdate&, const UpdateControl&) {
  TORCH_CHECK(false, "adam: this build has no CUDA");
}
#endif

}  // namespace switchyard
