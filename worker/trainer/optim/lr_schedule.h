// Learning rate of a step. Pure and torch-free.
//
// The curves are those of Megatron's OptimizerParamScheduler, which AutoModel's recipes use, value
// for value. With s = steps done before this one (0 for the first), W = warmup_steps, D =
// decay_steps:
//   s <= W and W > 0     init_lr + (lr - init_lr) s / W
//   constant             lr
//   s > D                min_lr
//   inverse square root  max(min_lr, lr sqrt(max(W, 1) / max(s, 1)))
//   else                 min_lr + (lr - min_lr) c, with r = (s - W) / (D - W):
//     linear  c = 1 - r            cosine  c = (1 + cos(pi r)) / 2
//     WSD     c = 1 until D - wsd_decay_steps, then a tail over q in (0, 1]:
//             linear 1 - q | cosine (1 + cos(pi q)) / 2 | exponential 2 * 0.5^q - 1 |
//             minus_sqrt 1 - sqrt(q)
#ifndef SWITCHYARD_WORKER_TRAINER_OPTIM_LR_SCHEDULE_H_
#define SWITCHYARD_WORKER_TRAINER_OPTIM_LR_SCHEDULE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

enum class LrDecay { kConstant, kLinear, kCosine, kWsd, kInverseSquareRoot };
enum class WsdTail { kLinear, kCosine, kExponential, kMinusSqrt };

struct LrSchedule {
  double lr = 1e-4;  // the peak
  double init_lr = 0;
  double min_lr = 0;
  LrDecay decay = LrDecay::kConstant;
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;  // from step 0 to the end of the decay; > warmup_steps unless constant
  int64_t wsd_decay_steps = 0;
  WsdTail wsd_tail = WsdTail::kLinear;
};

// Every fault in words, empty when there is none.
std::vector<std::string> ValidateLrSchedule(const LrSchedule& schedule);

// The rate for the step after `steps_done` steps. `schedule` is valid.
double LearningRate(const LrSchedule& schedule, int64_t steps_done);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_OPTIM_LR_SCHEDULE_H_
