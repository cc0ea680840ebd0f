#include "tests/bench/device_trace.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <utility>

#include "absl/strings/match.h"

namespace switchyard::bench {
namespace {

bool IsWait(const std::string& name) {
  return absl::StrContains(name, "Synchronize") || name == "cudaMemcpy" ||
         absl::StrContains(name, "cudaMalloc") || absl::StrContains(name, "cudaFree");
}

uint64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

Trace RecordTrace(const std::function<at::Tensor()>& work) {
  namespace profiler = torch::autograd::profiler;
  const profiler::ProfilerConfig config(profiler::ProfilerState::KINETO);
  const std::set<profiler::ActivityType> activities = {profiler::ActivityType::CUDA};
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  const uint64_t begin = NowNs();
  const at::Tensor last = work();
  const uint64_t end = NowNs();
  last.flatten()[0].item<double>();
  const auto result = profiler::disableProfiler();

  Trace trace;
  uint64_t first = UINT64_MAX, last_end = 0;
  for (const profiler::KinetoEvent& event : result->events()) {
    const std::string name = event.name();
    if (event.deviceType() == c10::DeviceType::CUDA) {
      const double us = static_cast<double>(event.durationNs()) * 1e-3;
      trace.kernels.push_back({name, us, event.startNs(), event.endNs(), event.deviceResourceId()});
      trace.busy_us += us;
      first = std::min(first, event.startNs());
      last_end = std::max(last_end, event.endNs());
    } else if (IsWait(name) && event.startNs() >= begin && event.startNs() < end) {
      ++trace.waits[name];
    }
  }
  std::sort(trace.kernels.begin(), trace.kernels.end(),
            [](const Kernel& a, const Kernel& b) { return a.start_ns < b.start_ns; });
  trace.span_us = first < last_end ? static_cast<double>(last_end - first) * 1e-3 : 0;
  return trace;
}

Overlap MeasureOverlap(const std::vector<Kernel>& kernels,
                       const std::function<bool(const std::string& name)>& is_of_kind) {
  // Sweep over starts and ends: how many of either sort run in each interval.
  struct Edge {
    uint64_t at;
    int kind, other;
  };
  std::vector<Edge> edges;
  for (const Kernel& kernel : kernels) {
    const int kind = is_of_kind(kernel.name) ? 1 : 0;
    edges.push_back({kernel.start_ns, kind, 1 - kind});
    edges.push_back({kernel.end_ns, -kind, kind - 1});
  }
  std::sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.at < b.at; });
  Overlap overlap;
  int kind = 0, other = 0;
  for (size_t i = 0; i + 1 < edges.size(); ++i) {
    kind += edges[i].kind;
    other += edges[i].other;
    const double us = static_cast<double>(edges[i + 1].at - edges[i].at) * 1e-3;
    if (kind > 0) overlap.kind_us += us;
    if (kind > 0 && other == 0) overlap.exposed_us += us;
  }
  if (!edges.empty()) {
    overlap.span_us = static_cast<double>(edges.back().at - edges.front().at) * 1e-3;
  }
  return overlap;
}

}  // namespace switchyard::bench
