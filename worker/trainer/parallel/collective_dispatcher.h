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
  std::unique_ptr<DispatchPlan> Plan(const at::Tensor& ids_TK) override;
  at::Tensor Dispatch(const DispatchPlan& plan, const at::Tensor& x_TH) override;
  at::Tensor Combine(const DispatchPlan& plan, const at::Tensor& rows_NH) override;
  at::Tensor DispatchScalars(const DispatchPlan& plan, const at::Tensor& s_TK) override;
  at::Tensor ReturnScalars(const DispatchPlan& plan, const at::Tensor& s_N) override;

 private:
  Comm& ep_;
  int64_t num_experts_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_COLLECTIVE_DISPATCHER_H_
