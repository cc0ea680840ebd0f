// Causal softmax attention of a token to the earlier tokens of its own document, with grouped
// key/value heads and an optional sliding window.
//
// T tokens, N query heads, M key/value heads (N a multiple of M; query head n uses key/value head
// n / (N / M)), d head_dim. Scores and softmax are in the accumulation dtype; the output is rounded
// to the dtype of q. q, k and v may be slices of one fused projection: of each token the heads are
// dense, tokens may be any distance apart.
//
// On CUDA: bf16 through cuDNN, or FlashAttention where cuDNN refuses a shape or the plan asks for a
// deterministic backward; other dtypes document by document in plain ATen (for tests). bf16 calls
// allocate from the caching allocator, run on the current stream, never wait for the device, and
// capture in a CUDA graph once a plan of their size has run.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_H_

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace switchyard::ops {

// How the documents of one micro-batch are computed. Made once, used by all layers, by one thread.
struct AttentionPlan {
  // On the CPU: batches of documents of similar length, each padded to its longest. Padding goes to
  // the end, where causality hides it.
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
  bool deterministic = false;  // wanted of the backward on CUDA; on the CPU it always is
  std::vector<int64_t> cu_seqlens;
  std::vector<Batch> batches;

  // On CUDA. Documents and the longest length are rounded up (attention_buckets.h), so that few
  // different kernels are planned; documents beyond the last are empty and cost 0.7 us each.
  int64_t num_documents = 0;  // that have tokens
  int64_t max_documents = 0;
  int64_t max_length = 0;
  at::Tensor offsets_B1;  // int32 [max_documents + 1]: first token of each document
  at::Tensor lengths_B;   // int32 [max_documents]

  // offsets_B1 times `stride`, int32: where documents begin in a tensor whose tokens are `stride`
  // elements apart. Computed at the first call for a stride, kept for the later ones.
  const at::Tensor& ElementOffsets(int64_t stride) const;
  // Takes over the documents of `next`, a plan for the same device and of the same max_documents
  // and max_length (checked), in place: captured graphs that hold this plan's tensors then see
  // them. num_tokens may differ; tokens behind it are not touched by such graphs.
  void Assign(const AttentionPlan& next);

 private:
  mutable std::vector<std::pair<int64_t, at::Tensor>> element_offsets_;  // by stride
};

// cu_seqlens: 0, then the end of each document; not descending (checked). Empty documents are fine.
// On a CUDA device the plan is copied from pinned memory without waiting.
AttentionPlan MakeAttentionPlan(const std::vector<int64_t>& cu_seqlens,
                                at::Device device = at::kCPU, bool deterministic = false);

struct AttentionOutput {
  at::Tensor out_TNd;
  at::Tensor log_sum_exp_TN;  // accumulation dtype; of the scaled scores; may be a transposed view
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
// Tensors defined in `into` are written and returned, with the layout rules of q, k and v (the
// gradient of v goes straight into that of a fused projection); the others are allocated.
AttentionGradients AttentionBackward(const at::Tensor& dout_TNd, const at::Tensor& q_TNd,
                                     const at::Tensor& k_TMd, const at::Tensor& v_TMd,
                                     const AttentionOutput& saved, const AttentionPlan& plan,
                                     double scale, int64_t window, AttentionGradients into = {});

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_ATTENTION_H_
