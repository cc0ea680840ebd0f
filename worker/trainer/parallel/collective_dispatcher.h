// Token dispatch by all-to-all over the ep axis: any device, any network. The reference for faster
// dispatchers, and the path between nodes.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_COLLECTIVE_DISPATCHER_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_COLLECTIVE_DISPATCHER_H_

#include <cstdint>
#include <memory>

#include "worker/trainer/parallel/comm.h"
#include "worker/trainer/parallel/token_dispatcher.h"

namespace switchyard {

// Experts are spread evenly: rank r of `ep` owns [r * E / ep, (r + 1) * E / ep). One row travels
// per token and rank that owns some of its experts, in both directions. Making a plan takes two
// exchanges, of counts, which the host waits for, and of rows; its buffers are exact.
class CollectiveDispatcher final : public TokenDispatcher {
 public:
  // Borrows `ep`. ep.size() divides num_experts (checked).
  CollectiveDispatcher(Comm& ep, int64_t num_experts);

  int64_t num_local_experts() const override { return num_experts_ / ep_.size(); }
  std::unique_ptr<DispatchPlan> Plan(const ops::Permutation& by_expert) override;
  std::unique_ptr<PendingDispatch> BeginDispatch(const DispatchPlan& plan, const at::Tensor& x_TH,
                                                 const at::Tensor& weights_TK) override;
  DispatchedRows FinishDispatch(std::unique_ptr<PendingDispatch> pending) override;
  std::unique_ptr<PendingCombine> BeginCombine(const DispatchPlan& plan, const at::Tensor& rows_NH,
                                               const at::Tensor& dweights_PN) override;
  CombinedRows FinishCombine(std::unique_ptr<PendingCombine> pending,
                             const at::Tensor& residual_TH) override;

 private:
  Comm& ep_;
  int64_t num_experts_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_COLLECTIVE_DISPATCHER_H_
