#include "worker/trainer/parallel/dispatcher_choice.h"

#include <utility>

#include "worker/trainer/parallel/collective_dispatcher.h"
#include "worker/trainer/parallel/local_dispatcher.h"
#if defined(SY_CUDA)
#include "worker/trainer/parallel/push_dispatcher.h"
#endif

namespace switchyard {
namespace {

// Tries; without a dispatcher `reason` says what is in the way.
DispatcherChoice TryPush(Comm& ep, const Mesh& mesh, const DispatcherNeeds& needs) {
  DispatcherChoice out;
  out.kind = "push";
  if (!needs.device.is_cuda() || needs.dtype != c10::ScalarType::BFloat16) {
    out.reason = "rows are not bf16 on GPUs";
    return out;
  }
#if defined(SY_CUDA)
  PushOptions options;
  options.num_experts = needs.num_experts;
  options.top_k = needs.top_k;
  options.hidden = needs.hidden;
  options.max_tokens = needs.max_tokens;
  options.rank = ep.rank();
  options.ranks = mesh.Group(Axis::kEp);
  options.timeout = needs.timeout;
  PushDispatcherResult made = PushDispatcher::Make(ep, std::move(options), needs.device);
  out.dispatcher = std::move(made.dispatcher);
  out.reason = std::move(made.explanation);
#else
  (void)ep, (void)mesh;
  out.reason = "this trainer was built without CUDA";
#endif
  return out;
}

}  // namespace

DispatcherChoice ChooseDispatcher(Comm& ep, const Mesh& mesh, const DispatcherNeeds& needs) {
  if (ep.size() == 1) {
    return {std::make_unique<LocalDispatcher>(needs.num_experts), "local",
            "this rank owns all experts"};
  }
  DispatcherChoice push = TryPush(ep, mesh, needs);
  if (push.dispatcher != nullptr) return push;
  return {std::make_unique<CollectiveDispatcher>(ep, needs.num_experts), "collective",
          std::move(push.reason)};
}

}  // namespace switchyard
