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

struct CombinedRows {
  at::Tensor sum_TH;
  at::Tensor dweights_TK;  // undefined when no gradients of weights were sent
};

// A dispatch or a combine between its Begin and its Finish. Keeps its inputs alive; borrows the
// plan.
class PendingDispatch {
 public:
  virtual ~PendingDispatch() = default;
};
class PendingCombine {
 public:
  virtual ~PendingCombine() = default;
};

// Collective over the ep axis: every rank calls the same members in the same order, also with T =
// 0, from one thread.
//
// A transfer is begun and finished, so that other work can be queued in between. Begin takes the
// inputs as of the current stream and may send them on a stream of the dispatcher's own; Finish
// orders the results on the current stream of its caller, which may be another one. Up to two
// dispatches and two combines may be in flight; those of one kind finish in the order in which they
// began. Each Begin is finished, except when an exception ends the run.
// Errors: CommError: a lost or late peer; the run is over.
class TokenDispatcher {
 public:
  virtual ~TokenDispatcher() = default;
  virtual int64_t num_local_experts() const = 0;
  // False: all experts are here, nothing travels and there is nothing to hide.
  virtual bool has_peers() const { return true; }
  // SMs that the kernels of its transfers take while those are in flight: what is computed
  // meanwhile leaves them free (ops/spare_sms.h).
  virtual int sms_in_flight() const { return 0; }
  // `by_expert`: this rank's token copies grouped by global expert; ids distinct within a token.
  virtual std::unique_ptr<DispatchPlan> Plan(const ops::Permutation& by_expert) = 0;

  // x_TH [T, H] -> [N, H], same dtype: row n is its token's row. With weights_TK (undefined: none)
  // also the weight of each row.
  virtual std::unique_ptr<PendingDispatch> BeginDispatch(const DispatchPlan& plan,
                                                         const at::Tensor& x_TH,
                                                         const at::Tensor& weights_TK) = 0;
  virtual DispatchedRows FinishDispatch(std::unique_ptr<PendingDispatch> pending) = 0;

  // rows_NH [N, H] -> [T, H], the sum of a token's rows, and of the residual [T, H] (undefined:
  // none). The order of additions is part of the contract, so that all dispatchers over the same
  // ranks give the same bits: at each rank that owns some of the token's experts its rows in
  // ascending order of k, in fp32, rounded to the dtype of the rows; then these sums in ascending
  // order of rank, then the residual, in fp32, rounded once. LocalDispatcher, without ranks, rounds
  // at the end only.
  // With dweights_PN (undefined: none) also the way back of one number per row, given as P partial
  // sums to be added in order: the gradient of the row's weight.
  virtual std::unique_ptr<PendingCombine> BeginCombine(const DispatchPlan& plan,
                                                       const at::Tensor& rows_NH,
                                                       const at::Tensor& dweights_PN) = 0;
  virtual CombinedRows FinishCombine(std::unique_ptr<PendingCombine> pending,
                                     const at::Tensor& residual_TH) = 0;

  // To be asked once after a forward and before anything of it is accumulated. True: a plan of it
  // needed more rows than the dispatcher keeps buffers for, so what was computed from it is wrong
  // (never out of bounds); buffers are larger from here on: forget the forward and run it again.
  // The same answer on all ranks; no tokens are ever dropped. May wait for the device, as far as
  // the last plan.
  virtual bool MustRepeat() { return false; }
  // How often MustRepeat has said so.
  virtual int64_t num_repeats() const { return 0; }

  // Throws when a transfer has failed on the device. To be called when the device has been waited
  // for and before results of its transfers are believed (reported, saved): up to then a failure
  // may not have been seen.
  virtual void CheckHealth() {}

  // This rank leaves the run because of a fault of its own: its peers stop waiting for it now, not
  // when they time out, and so do its own transfers that wait for them. The dispatcher cannot be
  // used again.
  virtual void GiveUp() noexcept {}

  // Both phases at once.
  DispatchedRows Dispatch(const DispatchPlan& plan, const at::Tensor& x_TH,
                          const at::Tensor& weights_TK) {
    return FinishDispatch(BeginDispatch(plan, x_TH, weights_TK));
  }
  at::Tensor Combine(const DispatchPlan& plan, const at::Tensor& rows_NH,
                     const at::Tensor& residual_TH) {
    return FinishCombine(BeginCombine(plan, rows_NH, {}), residual_TH).sum_TH;
  }
  // The transpose of Dispatch with weights.
  CombinedRows CombineGradients(const DispatchPlan& plan, const at::Tensor& drows_NH,
                                const at::Tensor& dweights_PN) {
    return FinishCombine(BeginCombine(plan, drows_NH, dweights_PN), {});
  }
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_TOKEN_DISPATCHER_H_
