// Router -> dispatch -> experts -> combine.
//
// T tokens, H hidden, E experts, K experts per token, N rows received by this rank, F ffn.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_MOE_BLOCK_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_MOE_BLOCK_H_

#include <ATen/core/Tensor.h>

#include <memory>

#include "worker/trainer/models/batch_context.h"
#include "worker/trainer/models/deferred_gradients.h"
#include "worker/trainer/models/parameters.h"
#include "worker/trainer/ops/router.h"
#include "worker/trainer/parallel/token_dispatcher.h"

namespace switchyard {

struct MoeSaved {
  // The decision. Kept under full recomputation too: it is replayed, never taken again.
  ops::RouterChoice choice;  // without weights_TK
  std::unique_ptr<DispatchPlan> plan;
  at::Tensor weights_N;  // routing weights of the received rows
  // The rest of the lean set.
  at::Tensor z_N2F;

  void KeepDecisionOnly() { z_N2F.reset(); }
};

// What one layer's routing tells the auxiliary loss and the metrics.
struct RoutingSums {
  at::Tensor offsets_E1;   // int32: of the copies that this rank's tokens send, by expert
  at::Tensor prob_sums_E;  // undefined without context.prob_sums
};

// Collective, as all of these: the same calls on every rank, also with T = 0. x_TH is the normed
// input; the residual is added to the result. `saved` may be null; `sums` may be null.
at::Tensor MoeForward(const BatchContext& context, const at::Tensor& router_EH,
                      const ExpertParameters& experts, const at::Tensor& x_TH,
                      const at::Tensor& residual_TH, MoeSaved* saved, RoutingSums* sums);

// Fills the lean set again from the decision in `saved`; with peers it leaves that to MoeBackward.
void MoeRecompute(const BatchContext& context, const ExpertParameters& experts,
                  const at::Tensor& x_TH, MoeSaved* saved);

// Where the block's gradients go: added, or overwritten.
struct MoeGradients {
  at::Tensor router_EH;
  bool accumulate_router = true;
  ExpertParameters experts;
  bool accumulate_experts = true;
};
// Returns dx, without the residual's part; consumes z of `saved`, which is computed again where it
// is not there. `dy_arriving`: the dispatch of dy [T, H], begun by the caller as soon as it has dy.
// daux_E: the auxiliary loss's gradient by each expert's probability, or undefined. `meanwhile`
// (may be null) is computed while the first transfers are in flight.
at::Tensor MoeBackward(const BatchContext& context, const at::Tensor& router_EH,
                       const ExpertParameters& experts, const at::Tensor& x_TH,
                       const at::Tensor& daux_E, MoeSaved* saved, const MoeGradients& gradients,
                       std::unique_ptr<PendingDispatch> dy_arriving,
                       DeferredGradients* meanwhile = nullptr);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_MOE_BLOCK_H_
