// Attention on CUDA, by backend. Private to this folder, its tests and its benchmark; attention.cc
// chooses. Builds without SY_CUDA have none of it.
//
// bf16, on the device of `plan`; the documents and the layout rules are those of attention.h. Calls
// do not wait for the device.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_CUDA_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_CUDA_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "worker/trainer/ops/attention.h"

namespace switchyard::ops::on_cuda {

struct AttentionInputs {
  at::Tensor q_TNd;
  at::Tensor k_TMd;
  at::Tensor v_TMd;
  const AttentionPlan& plan;
  double scale;
  int64_t window;  // 0: none
};

// cuDNN, through plans that are built once per key (shape, buckets, strides, window, scale) and
// thread and kept for the life of the thread. Return why cuDNN refuses, or an empty string.
// The log-sum-exp is dense [T, N]. The backward's sums over query blocks have no fixed order, so dq
// varies from run to run; its workspace is 12 bytes per token (rounded up to its bucket), head and
// element.
std::string CudnnAttentionForward(const AttentionInputs& in, AttentionOutput* out);
std::string CudnnAttentionBackward(const AttentionInputs& in, const at::Tensor& dout_TNd,
                                   const AttentionOutput& saved, AttentionGradients* out);

// FlashAttention 2 of ATen; a deterministic backward on request, which adds a sum over as many dq
// as there are blocks of keys in flight. The log-sum-exp is a transposed view of a dense [N, T];
// the backward takes that of cuDNN too. Throws for a head_dim that is no multiple of 8 or above
// 256.
AttentionOutput FlashAttentionForward(const AttentionInputs& in);
AttentionGradients FlashAttentionBackward(const AttentionInputs& in, const at::Tensor& dout_TNd,
                                          const AttentionOutput& saved, bool deterministic);

// cuDNN, else FlashAttention; the backward by FlashAttention when the plan says deterministic.
AttentionOutput AttentionForward(const AttentionInputs& in);
AttentionGradients AttentionBackward(const AttentionInputs& in, const at::Tensor& dout_TNd,
                                     const AttentionOutput& saved);

}  // namespace switchyard::ops::on_cuda

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_CUDA_H_
