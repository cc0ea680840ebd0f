// Moves token rows to the ranks that own their experts and back.
//
// T tokens of this rank, K experts per token, H hidden, N rows received by this rank. A token copy
// is one (token, k) pair. Received rows are grouped by local expert, ascending; inside an expert by
// source rank, then token, then k: the order, and so every sum, is deterministic.
//
// Dispatch and Combine are each other's transposes: the backward of Dispatch is Combine of the
// rows' gradients, the backward of Combine is Dispatch of the output's gradient. Routing weights
// travel beside the rows, because they are multiplied into the expert's hidden activation before
// its down projection: their gradient needs no expert output and travels back beside the rows'.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_TOKEN_DISPATCHER_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_TOKEN_DISPATCHER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "worker/trainer/ops/permute.h"

namespace switchyard {

// One routing decision, laid out; made by a dispatcher, kept for the backward (never decided
// again).
class DispatchPlan {
 public:
  virtual ~DispatchPlan() = default;
  int64_t num_tokens = 0;  // T
  // Rows of the buffers, N: exact on the CPU, on CUDA an upper bound. Rows past the last offset are
  // undefined.
  int64_t num_rows = 0;
  at::Tensor offsets_E1;  // int32 [local experts + 1], on the device: the first row of each expert
};

struct DispatchedRows {
  at::Tensor rows_NH;
  at::Tensor weights_N;  // undefined when no weights were sent
};

struct CombinedGradients {
  at::Tensor dx_TH;
  at::Tensor dweights_TK;
};

// Collective over the ep axis: every rank calls the same members in the same order, also with T =
// 0.
class TokenDispatcher {
 public:
  virtual ~TokenDispatcher() = default;
  virtual int64_t num_local_experts() const = 0;
  // `by_expert`: this rank's token copies grouped by global expert; ids distinct within a token.
  virtual std::unique_ptr<DispatchPlan> Plan(const ops::Permutation& by_expert) = 0;
  // x_TH [T, H] -> [N, H], same dtype: row n is its token's row. With weights_TK (undefined: none)
  // also the weight of each row.
  virtual DispatchedRows Dispatch(const DispatchPlan& plan, const at::Tensor& x_TH,
                                  const at::Tensor& weights_TK) = 0;
  // rows_NH [N, H] -> [T, H]: the sum of a token's rows, accumulated in fp32 in ascending order of
  // k, and of the residual [T, H] (undefined: none), then rounded once to the dtype of the rows.
  virtual at::Tensor Combine(const DispatchPlan& plan, const at::Tensor& rows_NH,
                             const at::Tensor& residual_TH) = 0;
  // The transpose of Dispatch with weights. The gradient of a row's weight comes as P partial sums
  // [P, N], to be added in order.
  virtual CombinedGradients CombineGradients(const DispatchPlan& plan, const at::Tensor& drows_NH,
                                             const at::Tensor& dweights_PN) = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_TOKEN_DISPATCHER_H_
