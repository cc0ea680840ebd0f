#include "tests/bench/ep_bench.h"

#include <c10/util/Exception.h>

#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/parallel/collective_dispatcher.h"
#if defined(SY_CUDA)
#include "worker/trainer/parallel/push_dispatcher.h"
#endif

namespace switchyard::bench {
namespace {

bool RunPart(EpPart part, const EpContext& context) {
  switch (part) {
    case EpPart::kExchange:
      return RunEpExchange(context);
    case EpPart::kLayer:
      return RunEpLayer(context);
    case EpPart::kStep:
      return RunEpStep(context);
    case EpPart::kParity:
      return RunEpParity(context);
  }
  return false;
}

}  // namespace

const char* Name(DispatcherKind kind) {
  return kind == DispatcherKind::kPush ? "push" : "collective";
}
const char* Name(Routing routing) { return routing == Routing::kUniform ? "uniform" : "skewed"; }

bool IsTransfer(const std::string& kernel) {
  for (const char* name : {"nccl", "PushKernel", "WaitKernel", "ExchangeKernel"}) {
    if (absl::StrContains(kernel, name)) return true;
  }
  return false;
}

std::unique_ptr<TokenDispatcher> MakeDispatcher(DispatcherKind kind, const Rank& rank,
                                                const DispatcherShape& shape) {
  Comm& ep = rank.comms[Axis::kEp];
  if (kind == DispatcherKind::kCollective) {
    return std::make_unique<CollectiveDispatcher>(ep, shape.experts);
  }
#if defined(SY_CUDA)
  PushOptions options;
  options.num_experts = shape.experts;
  options.top_k = shape.top_k;
  options.hidden = shape.hidden;
  options.max_tokens = shape.max_tokens;
  options.rank = ep.rank();
  options.ranks = rank.mesh.Group(Axis::kEp);
  options.timeout = shape.timeout;
  options.push_blocks = static_cast<int>(shape.blocks);
  PushDispatcherResult made = PushDispatcher::Make(ep, std::move(options), rank.device);
  TORCH_CHECK(made.dispatcher != nullptr, "push: ", made.explanation);
  return std::move(made.dispatcher);
#else
  TORCH_CHECK(false, "push: this build has no CUDA; --dispatchers collective");
#endif
}

int RunEp(const Options& options) {
  RanksOptions ranks;
  ranks.world = static_cast<int>(options.ep.ranks);
  ranks.in_process = options.ep.in_process;
  ranks.cpu = options.device == "cpu";
  ranks.num_experts = OrThrow(ShapeByName(options.shape, 1)).num_experts;
  ranks.kill_rank = static_cast<int>(options.ep.kill_rank);
  return RunRanks(ranks, [&](const Rank& rank) {
    JsonRows json(rank.first() ? options.json : "");
    const EpContext context{options, rank, json};
    if (rank.first()) {
      std::printf("# ep: %d ranks, %s, device %s\n", rank.world(),
                  rank.in_process != nullptr ? "threads of one process" : "one process each",
                  rank.device.str().c_str());
    }
    bool good = true;
    for (const EpPart part : options.ep.parts) good = RunPart(part, context) && good;
    return good;
  });
}

}  // namespace switchyard::bench
