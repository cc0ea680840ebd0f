// What all layers share while they compute one micro-batch.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_BATCH_CONTEXT_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_BATCH_CONTEXT_H_

#include "worker/trainer/models/model_config.h"
#include "worker/trainer/ops/attention.h"
#include "worker/trainer/ops/rope.h"
#include "worker/trainer/parallel/token_dispatcher.h"

namespace switchyard {

struct BatchContext {
  const ModelConfig& config;
  TokenDispatcher& dispatcher;
  bool router_fp32 = false;
  bool prob_sums = false;  // of the routers, for the auxiliary loss
  ops::RopeAngles rope;
  ops::AttentionPlan attention;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_BATCH_CONTEXT_H_
