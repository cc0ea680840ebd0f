// All ranks of a group at once, rank r on device r % devices. Where ranks share a device, bytes are
// those of device memory, of all its ranks together; where each has its own, the pushes are rated
// by the bytes that one rank sends over its links.
#include <algorithm>
#include <string>

#include "kernels/common/bench.h"
#include "kernels/common/kernel_benches.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/dispatch/dispatch_testing.h"

namespace switchyard::kernels {
namespace {

constexpr int kExperts = 128, kTopK = 8;
constexpr int kWarmUp = 3, kSamples = 50;

enum Phase { kRoute, kExchangePhase, kPush, kExpand, kCombinePushPhase, kReduce, kNumPhases };
constexpr const char* kPhaseNames[] = {"dispatch route",  "dispatch exchange", "dispatch push",
                                       "dispatch expand", "combine push",      "combine reduce"};

struct RankBuffers {
  RankBuffers(const DispatchShape& shape, int rank, const Routing& routing, int64_t max_rows)
      : row_of(routing.row_of),
        offsets(routing.offsets),
        words(DispatchPlanWords(shape, routing.tokens)),
        plan(DispatchPlanAt(shape, routing.tokens, max_rows, words.get())),
        x(routing.tokens * shape.hidden),
        rows(max_rows * shape.hidden),
        out(x.size()),
        weights(routing.tokens * shape.top_k),
        row_weights(max_rows),
        copy_sums(weights.size()),
        tick(std::vector<uint32_t>(1, 0)),
        errors(std::vector<uint32_t>(1, 0)),
        pattern{tick.get(),     rank,         x.get(),    weights.get(),
                routing.tokens, shape.hidden, shape.top_k} {}

  DeviceArray<int32_t> row_of, offsets, words;
  DispatchPlanData plan;
  DeviceArray<Bf16> x, rows, out;
  DeviceArray<float> weights, row_weights, copy_sums;
  DeviceArray<uint32_t> tick, errors;
  PatternParams pattern;
};

cudaError_t LaunchPhase(int phase, const DispatchGroup& group, const RankBuffers& b, int blocks,
                        cudaStream_t stream) {
  switch (phase) {
    case kRoute:
      return DispatchRoute({group, b.plan, b.row_of.get(), b.offsets.get()}, stream);
    case kExchangePhase:
      return DispatchExchange({group, b.plan, b.row_of.get(), b.offsets.get(), 0}, stream);
    case kPush:
      return DispatchPush({group, b.plan, b.x.get(), b.weights.get(), true, blocks, 0}, stream);
    case kExpand:
      return DispatchExpand({group, b.plan, b.x.get(), b.weights.get(), b.rows.get(),
                             b.row_weights.get(), true, blocks, 0},
                            stream);
    case kCombinePushPhase:
      return CombinePush({group, b.plan, b.rows.get(), b.row_weights.get(), 1, blocks, 0}, stream);
    default:
      return CombineReduce({group, b.plan, b.rows.get(), b.row_weights.get(), 1, nullptr,
                            b.out.get(), b.copy_sums.get(), 0, 0},
                           stream);
  }
}

// A chain of plans in a graph, as nothing else shows what one costs: launches by the host are
// slower, and events around a single call add as much as it takes. Returns us per plan.
std::vector<float> TimePlans(const InProcessRanks& ranks, const std::vector<RankBuffers>& buffers) {
  constexpr int kPlans = 20;
  std::vector<cudaGraphExec_t> graphs(ranks.size());
  cudaEvent_t start = nullptr, stop = nullptr;
  for (int r = 0; r < ranks.size(); ++r) {
    ranks.Use(r);
    const cudaStream_t stream = ranks.stream(r);
    CudaOrDie(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < kPlans; ++i) {
      CudaOrDie(LaunchPhase(kRoute, ranks.group(r), buffers[r], 1, stream), "route");
      CudaOrDie(LaunchPhase(kExchangePhase, ranks.group(r), buffers[r], 1, stream), "exchange");
    }
    cudaGraph_t graph = nullptr;
    CudaOrDie(cudaStreamEndCapture(stream, &graph), "capture");
    CudaOrDie(cudaGraphInstantiate(&graphs[r], graph, 0), "graph");
    CudaOrDie(cudaGraphUpload(graphs[r], stream), "graph");
    CudaOrDie(cudaGraphDestroy(graph), "graph");
  }
  ranks.Use(0);
  CudaOrDie(cudaEventCreate(&start), "event");
  CudaOrDie(cudaEventCreate(&stop), "event");
  ranks.Synchronize();
  std::vector<float> samples;
  for (int i = 0; i < kWarmUp + kSamples; ++i) {
    for (int r = ranks.size() - 1; r >= 0; --r) {  // rank 0, the last, ends with the others
      ranks.Use(r);
      if (r == 0) CudaOrDie(cudaEventRecord(start, ranks.stream(0)), "event");
      CudaOrDie(cudaGraphLaunch(graphs[r], ranks.stream(r)), "graph");
      if (r == 0) CudaOrDie(cudaEventRecord(stop, ranks.stream(0)), "event");
    }
    ranks.Synchronize();
    float ms = 0;
    CudaOrDie(cudaEventElapsedTime(&ms, start, stop), "event");
    if (i >= kWarmUp) samples.push_back(1000 * ms / kPlans);
  }
  for (const cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  return samples;
}

// Rows that a phase moves, of all ranks together, and that cross links.
struct Traffic {
  double rows[kNumPhases] = {};
  double sent = 0;
};
Traffic CountRows(const DispatchPlanRef& plan) {
  double tokens = 0, own_tokens = 0, remote_tokens = 0, own_copies = 0, copies = 0, records = 0;
  for (int source = 0; source < plan.shape.ranks; ++source) {
    for (size_t first = 0; first < plan.owner_of[source].size(); first += plan.shape.top_k) {
      const auto begin = plan.owner_of[source].begin() + static_cast<int64_t>(first);
      const auto own = std::count(begin, begin + plan.shape.top_k, source);
      tokens += 1;
      own_tokens += own > 0 ? 1 : 0;
      remote_tokens += own < plan.shape.top_k ? 1 : 0;
      own_copies += static_cast<double>(own);
      copies += plan.shape.top_k;
    }
    for (const int32_t count : plan.records[source]) records += count;
  }
  Traffic traffic;
  traffic.rows[kPush] = remote_tokens + records;
  traffic.rows[kExpand] = records + own_tokens + copies;
  traffic.rows[kCombinePushPhase] = copies - own_copies + records;
  traffic.rows[kReduce] = records + own_copies + tokens;
  traffic.sent = records;
  return traffic;
}

void RunShape(Bench& bench, int num_ranks, int64_t tokens, int hidden, int blocks, int devices,
              bool only_pushes) {
  Random random(12);
  const DispatchShape shape{num_ranks, kExperts, kTopK, hidden, tokens};
  const int64_t max_rows = tokens * kTopK * 5 / 4;
  InProcessRanks ranks(shape, 10'000'000'000);
  std::vector<RankBuffers> buffers;
  std::vector<RankRouting> views;
  std::vector<Routing> routings;
  std::vector<cudaEvent_t> starts, stops;
  for (int r = 0; r < num_ranks; ++r) {
    routings.push_back(RandomRouting(shape, tokens, Spread::kUniform, random));
  }
  for (int r = 0; r < num_ranks; ++r) {
    views.push_back(routings[r].View());
    ranks.Use(r);
    buffers.emplace_back(shape, r, routings[r], max_rows);
    starts.push_back(nullptr);
    stops.push_back(nullptr);
    CudaOrDie(cudaEventCreate(&starts[r]), "event");
    CudaOrDie(cudaEventCreate(&stops[r]), "event");
    LaunchFill(buffers[r].pattern, ranks.stream(r));
  }
  ranks.Use(0);
  cudaEvent_t gate = nullptr;
  CudaOrDie(cudaEventCreateWithFlags(&gate, cudaEventDisableTiming), "event");
  ranks.Synchronize();
  std::vector<float> samples[kNumPhases];
  for (int i = 0; i < kWarmUp + kSamples; ++i) {
    for (int phase = 0; phase < kNumPhases; ++phase) {
      // All start together, when the host has queued all.
      ranks.Use(0);
      LaunchDelay(20'000 * num_ranks, ranks.stream(0));
      CudaOrDie(cudaEventRecord(gate, ranks.stream(0)), "event");
      for (int r = 0; r < num_ranks; ++r) {
        ranks.Use(r);
        CudaOrDie(cudaStreamWaitEvent(ranks.stream(r), gate, 0), "event");
        CudaOrDie(cudaEventRecord(starts[r], ranks.stream(r)), "event");
        CudaOrDie(LaunchPhase(phase, ranks.group(r), buffers[r], blocks, ranks.stream(r)),
                  kPhaseNames[phase]);
        CudaOrDie(cudaEventRecord(stops[r], ranks.stream(r)), "event");
      }
      ranks.Synchronize();
      if (i < kWarmUp) continue;
      // From the first start to the last end on one device.
      float longest_us = 0;
      for (int a = 0; a < num_ranks; ++a) {
        for (int b = a % devices; b < num_ranks; b += devices) {
          float ms = 0;
          CudaOrDie(cudaEventElapsedTime(&ms, starts[a], stops[b]), "event");
          longest_us = std::max(longest_us, 1000 * ms);
        }
      }
      samples[phase].push_back(longest_us);
    }
  }
  const std::string shape_name = "R " + std::to_string(num_ranks) + " T " + std::to_string(tokens) +
                                 " H " + std::to_string(hidden) + " x" + std::to_string(blocks);
  for (int r = 0; r < num_ranks; ++r) {
    ranks.Use(r);
    LaunchCheck(buffers[r].pattern, buffers[r].out.get(), buffers[r].copy_sums.get(),
                buffers[r].errors.get(), ranks.stream(r));
    ranks.Synchronize();
    const uint32_t errors = buffers[r].errors.Download()[0];
    bench.Check("dispatch " + shape_name,
                errors == 0 ? "" : std::to_string(errors) + " wrong values");
    if (ranks.error(r).failure != DispatchFailure::kNone) bench.Check(shape_name, "a rank failed");
    cudaEventDestroy(starts[r]);
    cudaEventDestroy(stops[r]);
  }
  cudaEventDestroy(gate);
  const Traffic traffic = CountRows(PlanDispatchRef(shape, views, max_rows));
  if (!only_pushes) {
    bench.Report({"dispatch plan, in a chain", shape_name, "int32"}, TimePlans(ranks, buffers));
  }
  const bool has_links = devices == num_ranks && devices > 1;
  for (int phase = 0; phase < kNumPhases; ++phase) {
    if (phase == kRoute || phase == kExchangePhase) continue;  // as a chain, above
    const bool is_push = phase == kPush || phase == kCombinePushPhase;
    if (only_pushes && !is_push) continue;
    const double rows = is_push && has_links ? traffic.sent : traffic.rows[phase];
    const double sharing = devices;
    bench.Report({kPhaseNames[phase], shape_name, is_push && has_links ? "bf16 link" : "bf16", 0,
                  2. * hidden * rows / sharing},
                 samples[phase]);
  }
}

}  // namespace

void BenchDispatch(Bench& bench) {
  int devices = 0;
  CudaOrDie(cudaGetDeviceCount(&devices), "devices");
  if (devices == 1) {
    for (const int ranks : {2, 4, 8}) {
      RunShape(bench, ranks, 8192, 2048, NumSms() / ranks, 1, false);
    }
    return;
  }
  devices = devices >= 8 ? 8 : devices >= 4 ? 4 : 2;
  RunShape(bench, devices, 8192, 2048, 16, devices, false);
  for (const int hidden : {2048, 7168}) {
    for (const int64_t tokens : {4096, 8192}) {
      for (const int blocks : {4, 8, 12, 16, 20, 24, 32}) {
        RunShape(bench, devices, tokens, hidden, blocks, devices, true);
      }
    }
  }
}

}  // namespace switchyard::kernels
