// Token dispatch where one rank owns all experts: a permutation, no communication.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_LOCAL_DISPATCHER_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_LOCAL_DISPATCHER_H_

#include <cstdint>
#include <memory>

#include "worker/trainer/parallel/token_dispatcher.h"

namespace switchyard {

class LocalDispatcher final : public TokenDispatcher {
 public:
  explicit LocalDispatcher(int64_t num_experts) : num_experts_(num_experts) {}

  int64_t num_local_experts() const override { return num_experts_; }
  bool has_peers() const override { return false; }
  std::unique_ptr<DispatchPlan> Plan(const ops::Permutation& by_expert) override;
  std::unique_ptr<PendingDispatch> BeginDispatch(const DispatchPlan& plan, const at::Tensor& x_TH,
                                                 const at::Tensor& weights_TK) override;
  DispatchedRows FinishDispatch(std::unique_ptr<PendingDispatch> pending) override;
  std::unique_ptr<PendingCombine> BeginCombine(const DispatchPlan& plan, const at::Tensor& rows_NH,
                                               const at::Tensor& dweights_PN) override;
  CombinedRows FinishCombine(std::unique_ptr<PendingCombine> pending,
                             const at::Tensor& residual_TH) override;

 private:
  int64_t num_experts_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_LOCAL_DISPATCHER_H_
