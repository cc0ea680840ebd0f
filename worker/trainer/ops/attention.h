// Causal softmax attention of a token to the earlier tokens of its own document, with grouped
// key/value heads and an optional sliding window.
//
// T tokens, N query heads, M key/value heads (N a multiple of M; query head n uses key/value head
// n / (N / M)), d head_dim. Scores and softmax are in the accumulation dtype; the output is rounded
// to the dtype of q.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace switchyard::ops {

// How the documents of one micro-batch are computed on the CPU: in batches of similar length, each
// padded to its longest. Padding goes to the end, where causality hides it. Made once, used by all
// layers.
struct AttentionPlan {
  struct Batch {
    int64_t documents = 0;
    int64_t length = 0;        // of the longest
    bool contiguous = false;   // the whole micro-batch, in order, without padding: only views
    at::Tensor token_of_slot;  // int64 [documents * length]; padding repeats the first token
    at::Tensor padding_slots;  // int64
    at::Tensor tokens;         // int64, those of the documents, in slot order
    at::Tensor slots;          // int64, their slots
  };
  int64_t num_tokens = 0;
  std::vector<Batch> batches;
};

// cu_seqlens: 0, then the end of each document; not descending (checked). Empty documents are fine.
AttentionPlan MakeAttentionPlan(const std::vector<int64_t>& cu_seqlens);

struct AttentionOutput {
  at::Tensor out_TNd;
  at::Tensor log_sum_exp_TN;  // accumulation dtype; of the scaled scores
};

// window 0: all earlier tokens; else the last `window`, the token itself included.
AttentionOutput AttentionForward(const at::Tensor& q_TNd, const at::Tensor& k_TMd,
                                 const at::Tensor& v_TMd, const AttentionPlan& plan, double scale,
                                 int64_t window);

struct AttentionGradients {
  at::Tensor dq_TNd;
  at::Tensor dk_TMd;
  at::Tensor dv_TMd;
};
AttentionGradients AttentionBackward(const at::Tensor& dout_TNd, const at::Tensor& q_TNd,
                                     const at::Tensor& k_TMd, const at::Tensor& v_TMd,
                                     const AttentionOutput& saved, const AttentionPlan& plan,
                                     double scale, int64_t window);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_H_
