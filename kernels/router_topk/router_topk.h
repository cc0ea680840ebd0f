// The router behind its logits: softmax, top-k, the sums an auxiliary loss is made of, and the
// layout of the token copies by expert. Everything is deterministic: integer counts, and float sums
// in a fixed order.
//
//   p = softmax(logits) in fp32;  the top_k largest, descending, the lower expert first among
//   equals; weight = p of the chosen, divided by their sum when `normalize`, rounded to bf16 when
//   `round_weights` (the hidden dtype, as Hugging Face casts).
// Copies n = token * top_k + k of one expert keep their order: row_of is a stable counting sort.
//
// experts <= 512, 1 <= top_k <= 16, top_k <= experts; tokens == 0 is valid. Allocates nothing;
// asynchronous on `stream`, no host synchronization.
// Errors: cudaErrorInvalidValue for an unsupported shape, else the launch error.
#ifndef SWITCHYARD_KERNELS_ROUTER_TOPK_ROUTER_TOPK_H_
#define SWITCHYARD_KERNELS_ROUTER_TOPK_ROUTER_TOPK_H_

#include "kernels/common/dtype.h"
#include "kernels/common/launch.h"

namespace switchyard::kernels {

// Tokens that one segment of the workspace counts.
constexpr int kRouterSegment = 32;

struct RouterTopKParams {
  const Bf16* logits;  // in   [tokens, experts]
  int32_t* ids;        // out  [tokens, top_k]
  float* weights;      // out  [tokens, top_k]
  int32_t* row_of;     // out  [tokens * top_k], expert-major row of each copy
  int32_t* offsets;    // out  [experts + 1], first row of each expert
  float*
      prob_sums;  // out  [experts], sum over the tokens of p: what an auxiliary loss needs beside
                  //      the counts in `offsets`; null: not wanted
  // scratch: RouterWorkspaceBytes(tokens, experts), 4-byte aligned
  void* workspace;
  int64_t tokens;
  int experts, top_k;
  bool normalize, round_weights;
};
constexpr int64_t RouterWorkspaceBytes(int64_t tokens, int experts) {
  return (CeilDiv(tokens, kRouterSegment) + 1) * experts * 8;
}
cudaError_t RouterTopK(const RouterTopKParams& p, cudaStream_t stream);

// d_logits from the gradient of the weights and, the same for all tokens, of the probabilities. p
// is computed again from the logits; the choice is replayed from ids. Rounding of the weights
// passes gradients unchanged.
struct RouterTopKGradParams {
  const Bf16* logits;      // in   [tokens, experts]
  const int32_t* ids;      // in   [tokens, top_k]
  const float* d_weights;  // in   [tokens, top_k]
  const float* d_prob;  // in   [experts], by any one token's p, of the auxiliary loss; null: none
  Bf16* d_logits;       // out  [tokens, experts]; may be logits
  int64_t tokens;
  int experts, top_k;
  bool normalize;
};
cudaError_t RouterTopKGrad(const RouterTopKGradParams& p, cudaStream_t stream);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_ROUTER_TOPK_ROUTER_TOPK_H_
