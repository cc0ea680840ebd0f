// Token dispatch by all-to-all over the ep axis: any device, any network. The reference for faster
// dispatchers, and the path between nodes.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_COLLECTIVE_DISPATCHER_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_COLLECTIVE_DISPATCHER_H_

#include <cstdint>
#include <memory>

#include "worker/trainer/parallel/comm.h"
#include "worker/trainer/parallel/token_dispatcher.h"

namespace switchyard {

// Experts are spread evenly: rank r of `ep` owns [r * E / ep, (r + 1) * E / ep). Counts travel
// first, then one row per token copy; counts are read on the host.
class CollectiveDispatcher final : public TokenDispatcher {
 public:
  // Borrows `ep`. ep.size() divides num_experts (checked).
  CollectiveDispatcher(Comm& ep, int64_t num_experts);

  int64_t num_local_experts() const override { return num_experts_ / ep_.size(); }
  std::unique_ptr<DispatchPlan> Plan(const ops::Permutation& by_expert) override;
  DispatchedRows Dispatch(const DispatchPlan& plan, const at::Tensor& x_TH,
                          const at::Tensor& weights_TK) override;
  at::Tensor Combine(const DispatchPlan& plan, const at::Tensor& rows_NH,
                     const at::Tensor& residual_TH) override;
  CombinedGradients CombineGradients(const DispatchPlan& plan, const at::Tensor& drows_NH,
                                     const at::Tensor& dweights_PN) override;

 private:
  Comm& ep_;
  int64_t num_experts_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_COLLECTIVE_DISPATCHER_H_
