// One update of one run of elements: what Adam plans and the CPU or the GPU carries out.
#ifndef SWITCHYARD_WORKER_TRAINER_OPTIM_ADAMW_UPDATE_H_
#define SWITCHYARD_WORKER_TRAINER_OPTIM_ADAMW_UPDATE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/adamw/adamw.h"
#include "worker/trainer/optim/grad_clip.h"

namespace switchyard {

// Tensors are 1-D, contiguous, of one length and on one device.
struct AdamUpdate {
  at::Tensor weight;     // float32 or bfloat16
  at::Tensor remainder;  // int16: the rest of a bf16 weight's fp32 master; undefined: none
  at::Tensor exp_avg;    // float32 or bfloat16
  at::Tensor exp_avg_sq;
  at::Tensor gradient;  // float32 or bfloat16
  uint64_t key = 0;     // of the stochastic rounding
  int64_t first_index = 0;
  kernels::AdamWScalars scalars;
};

// The same bits on both devices. On CUDA bf16 weights go through kernels/adamw, asynchronously;
// float32 weights through ATen's operations, which wait for the decision in `control`.
void UpdateOnCpu(const AdamUpdate& update, float gradient_scale);
void UpdateOnCuda(const AdamUpdate& update, const UpdateControl& control);  // with SY_CUDA only

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_OPTIM_ADAMW_UPDATE_H_
