#include "worker/trainer/parallel/dispatcher_choice.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/trainer/parallel/collective_dispatcher.h"
#include "worker/trainer/parallel/local_dispatcher.h"
#if defined(SY_CUDA)
#include "worker/trainer/parallel/push_dispatcher.h"
#include "worker/trainer/parallel/symmetric_memory.h"
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
  out.reason = PushDispatcher::WhyNot(options);
  if (!out.reason.empty()) return out;
  const int64_t bytes = PushDispatcher::MemoryBytes(options);
  SymmetricMemoryResult memory = MakeSymmetricMemory(ep, needs.device, bytes);
  if (memory.memory == nullptr) {
    out.reason = absl::StrCat("no memory that all ranks can address: ", memory.explanation);
    return out;
  }
  if (memory.memory->in_process()) options.before_waiting = [&ep] { ep.Barrier(); };
  out.dispatcher =
      std::make_unique<PushDispatcher>(options, needs.device, std::move(memory.memory));
  out.reason = absl::StrCat(memory.explanation, ", ", bytes, " bytes per rank");
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
