// attention.h in plain ATen, document by document: whole score matrices, any dtype and device. The
// specification of the kernels, and what float32 on CUDA runs. May wait for the device.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_COMPOSED_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_COMPOSED_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/trainer/ops/attention.h"

namespace switchyard::ops {

AttentionOutput ComposedAttentionForward(const at::Tensor& q_TNd, const at::Tensor& k_TMd,
                                         const at::Tensor& v_TMd, const AttentionPlan& plan,
                                         double scale, int64_t window);
AttentionGradients ComposedAttentionBackward(const at::Tensor& dout_TNd, const at::Tensor& q_TNd,
                                             const at::Tensor& k_TMd, const at::Tensor& v_TMd,
                                             const AttentionOutput& saved,
                                             const AttentionPlan& plan, double scale,
                                             int64_t window);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_COMPOSED_H_
