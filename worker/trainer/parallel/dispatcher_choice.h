// Which token dispatcher a run uses.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_DISPATCHER_CHOICE_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_DISPATCHER_CHOICE_H_

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "worker/trainer/parallel/comm.h"
#include "worker/trainer/parallel/mesh.h"
#include "worker/trainer/parallel/token_dispatcher.h"

namespace switchyard {

// Equal on all ranks but for the device's number.
struct DispatcherNeeds {
  c10::Device device = c10::kCPU;
  c10::ScalarType dtype = c10::ScalarType::Float;  // of the rows
  int64_t num_experts = 0, top_k = 0, hidden = 0;
  int64_t max_tokens = 0;  // of any rank in any call
  absl::Duration timeout = absl::Seconds(600);
};

struct DispatcherChoice {
  std::unique_ptr<TokenDispatcher> dispatcher;
  std::string kind;    // "local", "push", "collective"
  std::string reason;  // why, in words
};

// LocalDispatcher where the group is one rank; PushDispatcher where all ranks compute in bf16 on
// GPUs that can address each other's memory, which is set up now; else CollectiveDispatcher.
// Collective over `ep`, which it borrows for the dispatcher's life: the same choice on all ranks.
DispatcherChoice ChooseDispatcher(Comm& ep, const Mesh& mesh, const DispatcherNeeds& needs);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_DISPATCHER_CHOICE_H_
