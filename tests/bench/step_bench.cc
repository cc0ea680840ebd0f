#include "tests/bench/step_bench.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "tests/bench/json_rows.h"
#include "tests/bench/median.h"
#include "tests/bench/training_model.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/device.h"
#include "worker/trainer/models/flops.h"
#include "worker/trainer/models/memory_plan.h"

namespace switchyard::bench {
namespace {

constexpr double kGib = 1 << 30;
constexpr double kPeakFlops = 989.4e12;  // dense bf16, H100 and H200 SXM

double SumOver(const std::vector<Batch>& batches, int64_t Batch::*member) {
  double sum = 0;
  for (const Batch& batch : batches) sum += static_cast<double>(batch.*member);
  return sum;
}

int64_t PlannedBytes(const ModelConfig& config, const Options& options, int64_t tokens) {
  MemoryPlanInput input;
  input.microbatch_tokens = tokens;
  input.microbatches = 1;
  input.weight_bytes = input.moment_bytes = input.gradient_bytes = 2;
  input.exact_master = options.layout == StateLayout::kExact;
  input.on_gpu = options.device != "cpu";
  input.full_recompute = options.activation_memory != ActivationMemory::kLean;
  input.offload = options.activation_memory == ActivationMemory::kOffload;
  return PlanMemory(config, input).total();
}

}  // namespace

const char* Name(StateLayout layout) { return layout == StateLayout::k8B ? "8B" : "exact"; }
const char* Name(ActivationMemory activations) {
  switch (activations) {
    case ActivationMemory::kLean:
      return "lean";
    case ActivationMemory::kFullRecompute:
      return "full_recompute";
    case ActivationMemory::kOffload:
      return "offload";
  }
  return "";
}

MeasuredSteps MeasureSteps(TrainingModel& model, const Options& options,
                           const std::vector<Batch>& batches, at::Device device) {
  const std::unique_ptr<Decoder> decoder = model.MakeDecoder(options.activation_memory);
  ResetPeakDeviceMemory(device);
  std::vector<StepTimer> timers;
  std::vector<at::Tensor> losses;
  absl::Duration start;
  for (int64_t i = 0; i < options.warm_up + options.steps; ++i) {
    if (i == options.warm_up) {
      losses.back().item<double>();
      start = RealClock::Get().Monotonic();
    }
    timers.emplace_back(RealClock::Get(), device);
    losses.push_back(model.Step(*decoder, batches[i % batches.size()], timers.back()));
  }
  MeasuredSteps measured;
  measured.last_loss = losses.back().item<double>();
  measured.wall_ms = absl::ToDoubleMilliseconds(RealClock::Get().Monotonic() - start) /
                     static_cast<double>(options.steps);
  measured.first_loss = losses.front().item<double>();
  std::vector<double> steps, forward_backward;
  for (size_t i = options.warm_up; i < timers.size(); ++i) {
    const StepTimer::Times times = timers[i].Read();
    steps.push_back(1e3 * times.total);
    forward_backward.push_back(1e3 * times.seconds.at("forward_backward"));
  }
  measured.step_ms = Median(steps);
  measured.forward_backward_ms = Median(forward_backward);
  measured.memory = ReadDeviceMemory(device);
  return measured;
}

int RunStep(const Options& options) {
  const c10::NoGradGuard no_grad;
  const at::Device device = OpenDevice(options.device);
  const ModelConfig config = OrThrow(ShapeByName(options.shape, options.layers));
  JsonRows json(options.json);
  TrainingModel model(config, options.layout, device);
  std::printf(
      "# step: %s, %lld layers, layout %s, %s, data %s; forward, backward, clipping, AdamW\n",
      options.shape.c_str(), static_cast<long long>(options.layers), Name(options.layout),
      Name(options.activation_memory), options.data.c_str());
  std::printf("%4s %9s %9s %9s %9s %9s %6s %9s %9s %9s %9s %9s\n", "mbs", "step ms", "f+b ms",
              "wall ms", "tok/s", "TFLOP/s", "% peak", "peak GiB", "plan GiB", "reserved", "loss 0",
              "loss");
  int exit_code = 0;
  bool trained = false;
  for (const int64_t rows : options.micro_batches) {
    const std::vector<Batch> batches = MakeBatches(options, config, rows, 4, device);
    const auto count = static_cast<double>(batches.size());
    const double tokens = SumOver(batches, &Batch::tokens) / count;
    const double flops =
        3 * ForwardFlops(config, static_cast<int64_t>(tokens),
                         static_cast<int64_t>(SumOver(batches, &Batch::causal_pairs) / count));
    Json row = {{"item", "step"},           {"shape", options.shape},
                {"layers", options.layers}, {"layout", Name(options.layout)},
                {"micro_batch", rows},      {"activation_memory", Name(options.activation_memory)},
                {"data", options.data},     {"tokens", tokens}};
    MeasuredSteps m;
    try {
      m = MeasureSteps(model, options, batches, device);
    } catch (const c10::OutOfMemoryError&) {
      std::printf("%4lld out of memory\n", static_cast<long long>(rows));
      row["error"] = "out of memory";
      json.Add(row);
      continue;
    }
    // A fresh model's loss tells whether the sums are right; later sizes go on with its weights.
    const bool plausible = std::isfinite(m.first_loss) && std::isfinite(m.last_loss) &&
                           (trained || std::abs(m.first_loss - std::log(config.vocab_size)) < 2);
    trained = true;
    const double planned =
        static_cast<double>(PlannedBytes(config, options, static_cast<int64_t>(tokens)));
    const auto peak = static_cast<double>(m.memory.peak_bytes);
    const double rate = flops / (m.step_ms * 1e-3);
    std::printf("%4lld %9.2f %9.2f %9.2f %9.0f %9.1f %6.1f %9.2f %9.2f %9.2f %9.3f %9.3f%s\n",
                static_cast<long long>(rows), m.step_ms, m.forward_backward_ms, m.wall_ms,
                tokens / m.step_ms * 1e3, rate / 1e12, 100 * rate / kPeakFlops, peak / kGib,
                planned / kGib, static_cast<double>(m.memory.reserved_bytes) / kGib, m.first_loss,
                m.last_loss, plausible ? "" : "  WRONG");
    std::fflush(stdout);
    row.update({{"step_ms", m.step_ms},
                {"forward_backward_ms", m.forward_backward_ms},
                {"wall_ms", m.wall_ms},
                {"tokens_per_second", tokens / m.step_ms * 1e3},
                {"flops_per_token", flops / tokens},
                {"tflops", rate / 1e12},
                {"percent_of_peak", 100 * rate / kPeakFlops},
                {"peak_bytes", m.memory.peak_bytes},
                {"planned_bytes", planned},
                {"reserved_bytes", m.memory.reserved_bytes},
                {"first_loss", m.first_loss},
                {"last_loss", m.last_loss}});
    json.Add(row);
    if (!plausible) exit_code = 1;
  }
  return exit_code;
}

int RunLayers(const Options& options) {
  const c10::NoGradGuard no_grad;
  const at::Device device = OpenDevice(options.device);
  TORCH_CHECK(options.layers % 2 == 0, "layers: --layers must be even, got ", options.layers);
  JsonRows json(options.json);
  std::printf("# layers: %s, forward and backward, (%lld - %lld layers) / %lld, %s\n",
              options.shape.c_str(), static_cast<long long>(options.layers),
              static_cast<long long>(options.layers / 2),
              static_cast<long long>(options.layers / 2), Name(options.activation_memory));
  std::printf("%8s %9s %9s %6s %12s\n", "tokens", "ms", "TFLOP/s", "% peak", "the rest, ms");
  std::vector<double> whole, half;
  std::vector<double> tokens, flops;
  for (const int64_t layers : {options.layers, options.layers / 2}) {
    const ModelConfig config = OrThrow(ShapeByName(options.shape, layers));
    TrainingModel model(config, options.layout, device);
    for (const int64_t rows : options.micro_batches) {
      const std::vector<Batch> batches = MakeBatches(options, config, rows, 4, device);
      const MeasuredSteps m = MeasureSteps(model, options, batches, device);
      TORCH_CHECK(std::isfinite(m.last_loss), "layers: the loss is ", m.last_loss);
      (layers == options.layers ? whole : half).push_back(m.forward_backward_ms);
      const double all = 3 * ForwardFlops(config, batches[0].tokens, batches[0].causal_pairs);
      if (layers == options.layers) {
        tokens.push_back(static_cast<double>(batches[0].tokens));
        flops.push_back(all);
      } else {
        flops[half.size() - 1] -= all;
      }
    }
  }
  const double difference = static_cast<double>(options.layers) / 2;
  for (size_t i = 0; i < whole.size(); ++i) {
    const double ms = (whole[i] - half[i]) / difference;
    const double rate = flops[i] / difference / (ms * 1e-3);
    std::printf("%8.0f %9.2f %9.1f %6.1f %12.2f\n", tokens[i], ms, rate / 1e12,
                100 * rate / kPeakFlops, half[i] - difference * ms);
    json.Add({{"item", "layer"},
              {"shape", options.shape},
              {"tokens", tokens[i]},
              {"ms", ms},
              {"tflops", rate / 1e12},
              {"rest_ms", half[i] - difference * ms}});
  }
  return 0;
}

}  // namespace switchyard::bench
