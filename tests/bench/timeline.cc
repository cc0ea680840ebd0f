#include "tests/bench/timeline.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "tests/bench/device_trace.h"
#include "tests/bench/json_rows.h"
#include "tests/bench/training_model.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/device.h"

namespace switchyard::bench {
namespace {

constexpr double kPeakFlops = 989.4e12;
constexpr double kPeakBytes = 3.35e12;

Trace Profile(TrainingModel& model, const Options& options, const std::vector<Batch>& batches) {
  const std::unique_ptr<Decoder> decoder = model.MakeDecoder(options.activation_memory);
  for (int64_t i = 0; i < options.warm_up; ++i) {
    model.ForwardBackward(*decoder, batches[i % batches.size()]).item<double>();
  }
  return RecordTrace([&] { return model.ForwardBackward(*decoder, batches[0]); });
}

// What a group of kernels does in one layer, forward and backward. Compute-bound ones are rated by
// the arithmetic of the layer, memory-bound ones by the bytes of each call (as in
// kernels/*/*_bench.cc: every tensor once), since some are called again in the backward.
struct Role {
  const char* name;
  std::vector<const char*> patterns;  // any of them in the kernel's name; the first role wins
  double flops = 0;
  double call_bytes = 0;
  double kernels_per_call = 1;
};

std::vector<Role> Roles(const ModelConfig& c, const Batch& batch) {
  const auto tokens = static_cast<double>(batch.tokens);
  const double rows = tokens * static_cast<double>(c.top_k);
  const auto hidden = static_cast<double>(c.hidden_size);
  const auto q = static_cast<double>(c.num_heads * c.head_dim);
  const auto kv = static_cast<double>(c.num_kv_heads * c.head_dim);
  const double down = 2 * rows * hidden * static_cast<double>(c.moe_intermediate_size);
  const double attention = 4 * static_cast<double>(batch.causal_pairs) * q;
  const double linear = 2 * tokens * hidden * (2 * q + 2 * kv + static_cast<double>(c.num_experts));
  const double tensor = 2 * tokens * hidden;
  const double move = 2 * hidden * (tokens + rows);
  return {
      {"norms", {"::NormKernel"}, 0, 2 * tensor},
      {"norm gradients", {"::NormGradKernel", "FinishWeightGrad"}, 0, 4 * tensor, 2},
      {"q/k norm, rope gradient",
       {"RopeGradKernel", "FinishRopeWeights"},
       0,
       3 * 2 * tokens * (q + kv),
       2},
      {"q/k norm, rope", {"RopeKernel"}, 0, 2 * 2 * tokens * (q + kv)},
      {"attention, forward", {"fprop", "flash_fwd"}, attention},
      {"attention, backward",
       {"bprop", "flash_bwd", "dot_do_o", "convert_dq", "fmha_reduce_head"},
       2.5 * attention},
      {"up projection, SwiGLU", {"Product)1"}, 2 * down},
      {"down projection", {"Product)0"}, down},
      {"down gradient, dSwiGLU", {"Product)3"}, down},
      {"up gradient", {"Product)2"}, 2 * down},
      {"weight gradients of experts", {"Product)4"}, 3 * down},
      {"permute", {"PermuteKernel"}, 0, move},
      {"combine", {"CombineKernel"}, 0, move},
      {"router", {"ChooseKernel", "PlaceKernel", "ScanSegments", "FinishLayout", "GradKernel<"}},
      {"projections, router logits", {"nvjet", "gemm", "cutlass", "cublas"}, 3 * linear},
      {"other", {""}},
  };
}

// Short enough for a row: no result type, no arguments, no namespaces of ours.
std::string ShortName(std::string name) {
  for (const char* drop : {"void ", "(anonymous namespace)::", "switchyard::kernels::",
                           "grouped_gemm::", "at::native::"}) {
    for (size_t at; (at = name.find(drop)) != std::string::npos;) {
      name.erase(at, std::string(drop).size());
    }
  }
  return name.substr(0, 76);
}

// One layer's kernels: from the attention of one layer to that of the next, as the mean over such
// periods. Head, loss and embedding lie outside of all of them.
struct Layer {
  std::vector<Kernel> forward, backward;
};

std::vector<Kernel> MeanPeriod(const std::vector<Kernel>& kernels, const std::vector<size_t>& at) {
  TORCH_CHECK(at.size() >= 2, "timeline: ", at.size(), " layers' attention found, 2 are needed");
  const size_t length = at[1] - at[0];
  std::vector<Kernel> mean(kernels.begin() + static_cast<int64_t>(at[0]),
                           kernels.begin() + static_cast<int64_t>(at[1]));
  double periods = 1;
  for (size_t i = 1; i + 1 < at.size(); ++i) {
    if (at[i + 1] - at[i] != length) continue;  // something else was queued there
    for (size_t k = 0; k < length; ++k) mean[k].us += kernels[at[i] + k].us;
    ++periods;
  }
  for (Kernel& kernel : mean) kernel.us /= periods;
  return mean;
}

Layer OneLayer(const Trace& trace) {
  std::vector<size_t> forward, backward;
  for (size_t i = 0; i < trace.kernels.size(); ++i) {
    const std::string& name = trace.kernels[i].name;
    if (absl::StrContains(name, "bprop") || absl::StrContains(name, "dq_dk_dv_loop")) {
      backward.push_back(i);
    } else if (absl::StrContains(name, "fprop") || absl::StrContains(name, "flash_fwd")) {
      if (backward.empty()) forward.push_back(i);  // later ones compute again for the backward
    }
  }
  return {MeanPeriod(trace.kernels, forward), MeanPeriod(trace.kernels, backward)};
}

const Role& RoleOf(const std::vector<Role>& roles, const std::string& kernel) {
  return *std::find_if(roles.begin(), roles.end(), [&](const Role& role) {
    return std::any_of(role.patterns.begin(), role.patterns.end(),
                       [&](const char* pattern) { return absl::StrContains(kernel, pattern); });
  });  // the last role takes all
}

void PrintLayer(const Layer& layer, const std::vector<Role>& roles, int64_t rows, JsonRows& json) {
  struct Usage {
    double calls = 0, us = 0;
  };
  std::map<const Role*, Usage> by_role;
  double sum = 0;
  for (const std::vector<Kernel>* part : {&layer.forward, &layer.backward}) {
    std::printf("# %s, kernel by kernel:\n", part == &layer.forward ? "forward" : "backward");
    for (const Kernel& kernel : *part) {
      const Role& role = RoleOf(roles, kernel.name);
      std::printf("#   %8.1f us  %-28s %s\n", kernel.us, role.name, ShortName(kernel.name).c_str());
      ++by_role[&role].calls;
      by_role[&role].us += kernel.us;
      sum += kernel.us;
    }
  }
  std::printf("%-30s %7s %9s %6s %10s %7s\n", "what", "kernels", "us", "share", "rate", "% peak");
  for (const Role& role : roles) {
    const Usage& usage = by_role[&role];
    if (usage.calls == 0) continue;
    const double work =
        role.flops > 0 ? role.flops : role.call_bytes * usage.calls / role.kernels_per_call;
    const double rate = work / (usage.us * 1e-6);
    char text[32] = "";
    if (work > 0) {
      std::snprintf(text, sizeof(text), role.flops > 0 ? "%.0f TF %7.1f" : "%.2f TB %7.1f",
                    rate / 1e12, 100 * rate / (role.flops > 0 ? kPeakFlops : kPeakBytes));
    }
    std::printf("%-30s %7.0f %9.1f %6.1f %18s\n", role.name, usage.calls, usage.us,
                100 * usage.us / sum, text);
    json.Add({{"item", "timeline"},
              {"micro_batch", rows},
              {"what", role.name},
              {"kernels", usage.calls},
              {"us", usage.us},
              {role.flops > 0 ? "tflops" : "tbytes_per_second", rate / 1e12}});
  }
  std::printf("%-30s %7s %9.1f\n", "one layer", "", sum);
}

}  // namespace

int RunTimeline(const Options& options) {
  const c10::NoGradGuard no_grad;
  const at::Device device = OpenDevice(options.device);
  TORCH_CHECK(device.is_cuda(), "timeline: needs a GPU, got --device ", options.device);
  JsonRows json(options.json);
  const ModelConfig config = OrThrow(ShapeByName(options.shape, options.layers));
  TrainingModel model(config, options.layout, device);
  int exit_code = 0;
  for (const int64_t rows : options.micro_batches) {
    const std::vector<Batch> batches = MakeBatches(options, config, rows, 2, device);
    const Trace trace = Profile(model, options, batches);
    std::printf("# timeline: %s, micro-batch %lld, %lld tokens\n", options.shape.c_str(),
                static_cast<long long>(rows), static_cast<long long>(batches[0].tokens));
    PrintLayer(OneLayer(trace), Roles(config, batches[0]), rows, json);
    int64_t waits = 0;
    for (const auto& [name, count] : trace.waits) {
      waits += count;
      std::printf("# host waits: %s x %lld\n", name.c_str(), static_cast<long long>(count));
    }
    std::printf("# whole micro-batch: %.0f us of kernels in %.0f us; the host waited %lld times\n",
                trace.busy_us, trace.span_us, static_cast<long long>(waits));
    std::fflush(stdout);
    json.Add({{"item", "micro_batch"},
              {"micro_batch", rows},
              {"busy_us", trace.busy_us},
              {"span_us", trace.span_us},
              {"host_waits", waits}});
    if (waits > 0) exit_code = 1;
  }
  return exit_code;
}

}  // namespace switchyard::bench
