#include "worker/trainer/optim/lr_schedule.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

double HalfCosine(double ratio) { return 0.5 * (std::cos(M_PI * ratio) + 1.0); }

double TailCoefficient(WsdTail tail, double ratio) {
  switch (tail) {
    case WsdTail::kLinear:
      return 1.0 - ratio;
    case WsdTail::kCosine:
      return HalfCosine(ratio);
    case WsdTail::kExponential:
      return 2.0 * std::pow(0.5, ratio) - 1.0;
    case WsdTail::kMinusSqrt:
      return 1.0 - std::sqrt(ratio);
  }
  return 0.0;
}

}  // namespace

std::vector<std::string> ValidateLrSchedule(const LrSchedule& s) {
  std::vector<std::string> faults;
  const auto check_rate = [&faults](const char* name, double value) {
    if (!(value >= 0) || !std::isfinite(value)) {
      faults.push_back(absl::StrCat("lr_schedule: ", name, " is ", value, ", must be >= 0"));
    }
  };
  check_rate("lr", s.lr);
  check_rate("init_lr", s.init_lr);
  check_rate("min_lr", s.min_lr);
  if (s.min_lr > s.lr) {
    faults.push_back(absl::StrCat("lr_schedule: min_lr ", s.min_lr, " is above lr ", s.lr));
  }
  if (s.warmup_steps > 0 && s.init_lr > s.lr) {
    faults.push_back(absl::StrCat("lr_schedule: init_lr ", s.init_lr, " is above lr ", s.lr));
  }
  if (s.warmup_steps < 0) {
    faults.push_back(absl::StrCat("lr_schedule: warmup_steps is ", s.warmup_steps));
  }
  if (s.decay == LrDecay::kConstant) return faults;
  if (s.decay_steps <= s.warmup_steps) {
    faults.push_back(absl::StrCat("lr_schedule: decay_steps ", s.decay_steps,
                                  " must be more than warmup_steps ", s.warmup_steps));
  }
  if (s.decay == LrDecay::kWsd &&
      (s.wsd_decay_steps < 1 || s.wsd_decay_steps > s.decay_steps - s.warmup_steps)) {
    faults.push_back(absl::StrCat("lr_schedule: wsd_decay_steps ", s.wsd_decay_steps,
                                  " must be between 1 and decay_steps - warmup_steps ",
                                  s.decay_steps - s.warmup_steps));
  }
  return faults;
}

double LearningRate(const LrSchedule& s, int64_t steps_done) {
  const double step = static_cast<double>(steps_done);
  if (s.warmup_steps > 0 && steps_done <= s.warmup_steps) {
    return s.init_lr + (s.lr - s.init_lr) * step / static_cast<double>(s.warmup_steps);
  }
  if (s.decay == LrDecay::kConstant) return s.lr;
  if (steps_done > s.decay_steps) return s.min_lr;
  if (s.decay == LrDecay::kInverseSquareRoot) {
    const double warmup = static_cast<double>(std::max<int64_t>(s.warmup_steps, 1));
    return std::max(s.min_lr, s.lr * std::sqrt(warmup) / std::sqrt(std::max(step, 1.0)));
  }
  const double ratio = static_cast<double>(steps_done - s.warmup_steps) /
                       static_cast<double>(s.decay_steps - s.warmup_steps);
  double coefficient = 1.0;
  switch (s.decay) {
    case LrDecay::kLinear:
      coefficient = 1.0 - ratio;
      break;
    case LrDecay::kCosine:
      coefficient = HalfCosine(ratio);
      break;
    case LrDecay::kWsd: {
      const int64_t tail_steps = steps_done - (s.decay_steps - s.wsd_decay_steps);
      if (tail_steps > 0) {
        coefficient = TailCoefficient(
            s.wsd_tail, static_cast<double>(tail_steps) / static_cast<double>(s.wsd_decay_steps));
      }
      break;
    }
    case LrDecay::kConstant:
    case LrDecay::kInverseSquareRoot:
      break;  // returned above
  }
  return s.min_lr + coefficient * (s.lr - s.min_lr);
}

}  // namespace switchyard
