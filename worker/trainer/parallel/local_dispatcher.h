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
  std::unique_ptr<DispatchPlan> Plan(const at::Tensor& ids_TK) override;
  at::Tensor Dispatch(const DispatchPlan& plan, const at::Tensor& x_TH) override;
  at::Tensor Combine(const DispatchPlan& plan, const at::Tensor& rows_NH) override;
  at::Tensor DispatchScalars(const DispatchPlan& plan, const at::Tensor& s_TK) override;
  at::Tensor ReturnScalars(const DispatchPlan& plan, const at::Tensor& s_N) override;

 private:
  int64_t num_experts_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_LOCAL_DISPATCHER_H_
