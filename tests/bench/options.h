// The command line of switchyard-bench.
#ifndef SWITCHYARD_TESTS_BENCH_OPTIONS_H_
#define SWITCHYARD_TESTS_BENCH_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/trainer/models/decoder.h"
#include "worker/trainer/models/model_config.h"

namespace switchyard::bench {

enum class Command { kKernels, kStep, kLayers, kTimeline };

// What a parameter takes: weights, gradients and moments in bf16, and
enum class StateLayout {
  k8B,     // nothing else: weights are rounded stochastically (8 bytes)
  kExact,  // the 16 bits that make the weight an fp32 master (10 bytes)
};

struct Options {
  Command command = Command::kKernels;
  bool help = false;
  std::string shape = "qwen3-30b-a3b";
  int64_t layers = 4;
  std::vector<int64_t> micro_batches = {1, 2, 4, 8};  // rows of `sequence` tokens
  int64_t sequence = 4096;
  StateLayout layout = StateLayout::k8B;
  ActivationMemory activation_memory = ActivationMemory::kLean;
  std::string data = "random";  // or a token file
  std::string device = "cuda:0";
  int64_t steps = 8;
  int64_t warm_up = 4;
  std::string json;                  // rows are also written here, one object per line
  std::vector<std::string> kernels;  // of the command "kernels": which; empty: all
};

extern const char kHelp[];

// `arguments` without the program's name. Errors: InvalidArgument.
absl::StatusOr<Options> ParseOptions(const std::vector<std::string>& arguments);

// The sizes of a public model with `layers` layers. Errors: InvalidArgument: an unknown name.
absl::StatusOr<ModelConfig> ShapeByName(const std::string& name, int64_t layers);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_OPTIONS_H_
