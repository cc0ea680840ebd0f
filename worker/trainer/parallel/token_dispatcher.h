// Moves token rows to the ranks that own their experts and back.
//
// T tokens of this rank, K experts per token, H hidden, N rows received by this rank. A token copy
// is one (token, k) pair. Received rows are grouped by local expert, ascending; inside an expert by
// source rank, then token, then k: the order, and so every sum, is deterministic.
//
// Dispatch and Combine are each other's transposes: the backward of Dispatch is Combine of the
// rows' gradients, the backward of Combine is Dispatch of the output's gradient. Routing weights
// travel as scalars, because they are multiplied into the expert's hidden activation before its
// down projection: their gradient needs no expert output.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_TOKEN_DISPATCHER_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_TOKEN_DISPATCHER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace switchyard {

// One routing decision, laid out; made by a dispatcher, kept for the backward (never decided
// again).
class DispatchPlan {
 public:
  virtual ~DispatchPlan() = default;
  int64_t num_tokens = 0;                // T
  int64_t num_rows = 0;                  // N
  std::vector<int64_t> rows_per_expert;  // [local experts], sums to N
};

// Collective over the ep axis: every rank calls the same members in the same order, also with T =
// 0.
class TokenDispatcher {
 public:
  virtual ~TokenDispatcher() = default;
  virtual int64_t num_local_experts() const = 0;
  // ids_TK: int64 [T, K], global expert ids, distinct within a token.
  virtual std::unique_ptr<DispatchPlan> Plan(const at::Tensor& ids_TK) = 0;
  // x_TH [T, H] -> [N, H], same dtype: row n is its token's row.
  virtual at::Tensor Dispatch(const DispatchPlan& plan, const at::Tensor& x_TH) = 0;
  // rows_NH [N, H] -> [T, H]: the sum of a token's rows, accumulated in fp32 in ascending order of
  // k, then rounded once to the dtype of the rows.
  virtual at::Tensor Combine(const DispatchPlan& plan, const at::Tensor& rows_NH) = 0;
  // One scalar per token copy, [T, K] -> [N], and back, [N] -> [T, K]. Same dtype.
  virtual at::Tensor DispatchScalars(const DispatchPlan& plan, const at::Tensor& s_TK) = 0;
  virtual at::Tensor ReturnScalars(const DispatchPlan& plan, const at::Tensor& s_N) = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_TOKEN_DISPATCHER_H_
