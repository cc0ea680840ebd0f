#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>

#include "base/clock.h"
#include "tests/bench/device_trace.h"
#include "tests/bench/ep_bench.h"
#include "tests/bench/step_bench.h"
#include "tests/bench/training_model.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/device.h"
#include "worker/trainer/models/flops.h"

namespace switchyard::bench {
namespace {

constexpr double kGib = 1 << 30;
constexpr int kParitySteps = 4;
// Relative. Tokens' sums are rounded to bf16 once per rank, so that a router may choose otherwise
// here and there; a lost row or gradient moves the norm of all gradients by far more.
constexpr double kLossTolerance = 1e-3;
constexpr double kNormTolerance = 1e-2;

DispatcherShape ShapeOf(const ModelConfig& config, int64_t tokens, const EpOptions& ep) {
  return {config.num_experts, config.top_k, config.hidden_size, tokens, ep.blocks.front()};
}

// One step under the profiler, communication of the slowest rank. Empty where ranks share a process
// (whose kernel hides whose could not be told) or have no GPU.
Overlap TraceStep(const EpContext& context, TrainingModel& model, const Batch& batch,
                  DispatcherKind kind) {
  const Rank& rank = context.rank;
  if (rank.in_process != nullptr || rank.device.is_cpu()) return {};
  const std::unique_ptr<Decoder> decoder = model.MakeDecoder(context.options.activation_memory);
  const Trace trace = RecordTrace([&] {
    rank.comms[Axis::kWorld].Barrier();  // a late rank is no transfer
    StepTimer timer(RealClock::Get(), rank.device);
    return model.Step(*decoder, batch, timer);
  });
  for (const Kernel& kernel : trace.kernels) {
    context.json.Add(
        {{"item", "ep_step_kernel"},
         {"how", Name(kind)},
         {"tokens", batch.tokens},
         {"name", kernel.name},
         {"stream", kernel.stream},
         {"transfer", IsTransfer(kernel.name)},
         {"start_us", static_cast<double>(kernel.start_ns - trace.kernels.front().start_ns) * 1e-3},
         {"us", kernel.us}});
  }
  const Overlap mine = MeasureOverlap(trace.kernels, IsTransfer);
  return {rank.Slowest(mine.span_us), rank.Slowest(mine.kind_us), rank.Slowest(mine.exposed_us)};
}

void PrintHeader(const EpContext& context) {
  const Options& o = context.options;
  std::printf("# step: %s, %lld layers, layout %s, %s; %d ranks; tokens per second and GPU\n",
              o.shape.c_str(), static_cast<long long>(o.layers), Name(o.layout),
              Name(o.activation_memory), context.rank.world());
  std::printf("%-10s %4s %9s %9s %9s %9s %9s %9s %9s %9s %9s %9s\n", "how", "mbs", "step ms",
              "f+b ms", "tok/s", "TFLOP/s", "peak GiB", "reserved", "comm ms", "exposed", "loss 0",
              "loss");
}

}  // namespace

bool RunEpStep(const EpContext& context) {
  const Rank& rank = context.rank;
  const Options& options = context.options;
  const ModelConfig config = OrThrow(ShapeByName(options.shape, options.layers));
  if (rank.first()) PrintHeader(context);
  bool good = true;
  for (const DispatcherKind kind : options.ep.dispatchers) {
    const int64_t most_rows =
        *std::max_element(options.micro_batches.begin(), options.micro_batches.end());
    const auto dispatcher =
        MakeDispatcher(kind, rank, ShapeOf(config, most_rows * options.sequence, options.ep));
    TrainingModel model(config, options.layout, rank.device, rank.mesh, rank.comms, *dispatcher);
    bool trained = false;
    for (const int64_t rows : options.micro_batches) {
      const std::vector<Batch> batches =
          MakeBatches(options, config, rows, 4, rank.device, rank.rank(), rank.world());
      const MeasuredSteps m = MeasureSteps(model, options, batches, rank.device);
      const Overlap communication = TraceStep(context, model, batches[0], kind);
      const double step_ms = rank.Slowest(m.step_ms);
      const double tokens = rank.Sum(static_cast<double>(batches[0].tokens)) / rank.world();
      const double peak = rank.Slowest(static_cast<double>(m.memory.peak_bytes));
      const double reserved = rank.Slowest(static_cast<double>(m.memory.reserved_bytes));
      const double rate =
          3 * ForwardFlops(config, batches[0].tokens, batches[0].causal_pairs) / (step_ms * 1e-3);
      const bool plausible = std::isfinite(m.first_loss) && std::isfinite(m.last_loss) &&
                             (trained || std::abs(m.first_loss - std::log(config.vocab_size)) < 2);
      trained = true;
      good = rank.All(plausible) && good;
      if (!rank.first()) continue;
      std::printf("%-10s %4lld %9.2f %9.2f %9.0f %9.1f %9.2f %9.2f %9.2f %9.2f %9.3f %9.3f%s\n",
                  Name(kind), static_cast<long long>(rows), step_ms, m.forward_backward_ms,
                  tokens / step_ms * 1e3, rate / 1e12, peak / kGib, reserved / kGib,
                  communication.kind_us * 1e-3, communication.exposed_us * 1e-3, m.first_loss,
                  m.last_loss, plausible ? "" : "  WRONG");
      std::fflush(stdout);
      context.json.Add({{"item", "ep_step"},
                        {"how", Name(kind)},
                        {"shape", options.shape},
                        {"layers", options.layers},
                        {"layout", Name(options.layout)},
                        {"activation_memory", Name(options.activation_memory)},
                        {"ranks", rank.world()},
                        {"micro_batch", rows},
                        {"step_ms", step_ms},
                        {"forward_backward_ms", m.forward_backward_ms},
                        {"tokens_per_second_per_gpu", tokens / step_ms * 1e3},
                        {"tflops", rate / 1e12},
                        {"peak_bytes", peak},
                        {"communication_us", communication.kind_us},
                        {"exposed_us", communication.exposed_us},
                        {"first_loss", m.first_loss},
                        {"last_loss", m.last_loss},
                        {"right", plausible}});
    }
  }
  return good;
}

namespace {

struct TrainedSteps {
  std::vector<double> losses, norms;
};

TrainedSteps Train(const EpContext& context, TrainingModel& model,
                   const std::vector<Batch>& batches) {
  const std::unique_ptr<Decoder> decoder = model.MakeDecoder(context.options.activation_memory);
  TrainedSteps trained;
  for (int i = 0; i < kParitySteps; ++i) {
    StepTimer timer(RealClock::Get(), context.rank.device);
    const at::Tensor loss = model.Step(*decoder, batches[i % batches.size()], timer);
    trained.losses.push_back(loss.item<double>());
    trained.norms.push_back(model.GradientNorm());
  }
  return trained;
}

// NaN differs from everything.
double LargestDifference(const std::vector<double>& got, const std::vector<double>& want) {
  double largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(got[i] - want[i]) / std::abs(want[i]);
    largest = std::isnan(difference) ? HUGE_VAL : std::max(largest, difference);
  }
  return largest;
}

}  // namespace

bool RunEpParity(const EpContext& context) {
  const Rank& rank = context.rank;
  const Options& options = context.options;
  const ModelConfig config = OrThrow(ShapeByName(options.shape, options.layers));
  const int64_t rows = options.micro_batches.front();
  // One rank with everybody's rows, in the order of the ranks; kept no longer than needed.
  TrainedSteps want;
  if (rank.first()) {
    TrainingModel alone(config, options.layout, rank.device);
    want = Train(context, alone,
                 MakeJointBatches(options, config, rows, 2, rank.device, rank.world()));
  }
  FlushDevice(rank.device);
  rank.comms[Axis::kWorld].Barrier();
  bool good = true;
  for (const DispatcherKind kind : options.ep.dispatchers) {
    const auto dispatcher =
        MakeDispatcher(kind, rank, ShapeOf(config, rows * options.sequence, options.ep));
    TrainingModel model(config, options.layout, rank.device, rank.mesh, rank.comms, *dispatcher);
    const TrainedSteps got =
        Train(context, model,
              MakeBatches(options, config, rows, 2, rank.device, rank.rank(), rank.world()));
    bool right = true;
    if (rank.first()) {
      const double losses = LargestDifference(got.losses, want.losses);
      const double norms = LargestDifference(got.norms, want.norms);
      right = losses <= kLossTolerance && norms <= kNormTolerance;
      std::printf(
          "parity %s: %d ranks, loss %.5f .. %.5f, gradient norm %.4f .. %.4f; one rank "
          "%.5f .. %.5f, %.4f .. %.4f; largest differences %.1e, %.1e  %s\n",
          Name(kind), rank.world(), got.losses.front(), got.losses.back(), got.norms.front(),
          got.norms.back(), want.losses.front(), want.losses.back(), want.norms.front(),
          want.norms.back(), losses, norms, right ? "ok" : "WRONG");
      std::fflush(stdout);
      context.json.Add({{"item", "parity"},
                        {"how", Name(kind)},
                        {"ranks", rank.world()},
                        {"loss_difference", losses},
                        {"norm_difference", norms},
                        {"right", right}});
    }
    good = rank.All(right) && good;
  }
  return good;
}

}  // namespace switchyard::bench
