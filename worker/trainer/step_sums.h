// What a step or a validation adds up to: over micro-batches, then over ranks.
#ifndef SWITCHYARD_WORKER_TRAINER_STEP_SUMS_H_
#define SWITCHYARD_WORKER_TRAINER_STEP_SUMS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/trainer/models/decoder.h"
#include "worker/trainer/parallel/comm.h"

namespace switchyard {

// Over all ranks.
struct StepNumbers {
  double ce = 0;
  double aux = 0;  // coefficient x mean auxiliary loss
  int64_t supervised = 0;
  at::Tensor copies_LE;  // int64 [MoE layers, experts]: token copies
};

// Sums over the micro-batches on the device, then over ranks, without waiting for either.
class StepSums {
 public:
  void Add(const LossSums& microbatch);
  // Collective. float64 [3 + L * E]: ce, aux, supervised, then the token copies (exact up to 2^53).
  at::Tensor Reduce(Comm& world) const;
  // `sums` of Reduce on the host.
  StepNumbers Unpack(const at::Tensor& sums) const;

 private:
  at::Tensor ce_, aux_, copies_LE_;
  int64_t supervised_ = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_STEP_SUMS_H_
