#include "kernels/common/kernel_benches.h"

#include <algorithm>

#include "kernels/dispatch/dispatch_testing.h"

namespace switchyard::kernels {
namespace {

struct KernelBench {
  const char* name;
  void (*run)(Bench&);
};

constexpr KernelBench kBenches[] = {
    {"rmsnorm", &BenchRmsNorm},        {"rope", &BenchRope},
    {"router_topk", &BenchRouterTopK}, {"permute", &BenchPermute},
    {"dispatch", &BenchDispatch},      {"grouped_gemm", &BenchGroupedGemm},
    {"moe_block", &BenchMoeBlock},     {"cross_entropy", &BenchCrossEntropy},
    {"embedding", &BenchEmbedding},    {"adamw", &BenchAdamW},
    {"rank_sum", &BenchRankSum},
};

}  // namespace

std::vector<std::string> KernelBenchNames() {
  std::vector<std::string> names;
  for (const KernelBench& bench : kBenches) names.push_back(bench.name);
  return names;
}

int RunKernelBenches(const std::vector<std::string>& names, const std::string& json_file) {
  AskForQueues();  // before the first CUDA call
  Bench bench(json_file);
  for (const KernelBench& each : kBenches) {
    if (names.empty() || std::find(names.begin(), names.end(), each.name) != names.end()) {
      each.run(bench);
    }
  }
  return bench.ExitCode();
}

}  // namespace switchyard::kernels
