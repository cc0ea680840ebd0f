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

enum class Command { kKernels, kStep, kLayers, kTimeline, kEp };

// What a parameter takes: weights, gradients and moments in bf16, and
enum class StateLayout {
  k8B,     // nothing else: weights are rounded stochastically (8 bytes)
  kExact,  // the 16 bits that make the weight an fp32 master (10 bytes)
};

// What of expert parallelism is measured.
enum class EpPart { kExchange, kLayer, kStep, kParity };
enum class DispatcherKind { kPush, kCollective };
enum class Routing {
  kUniform,  // experts drawn alike
  kSkewed,   // some are drawn more often, the same ones on all ranks
};

struct EpOptions {
  int64_t ranks = 1;
  bool in_process = false;  // ranks are threads: of one GPU, or of several in turn
  std::vector<EpPart> parts = {EpPart::kExchange, EpPart::kLayer, EpPart::kStep};
  std::vector<DispatcherKind> dispatchers = {DispatcherKind::kPush, DispatcherKind::kCollective};
  std::vector<Routing> routings = {Routing::kUniform, Routing::kSkewed};
  std::vector<int64_t> tokens = {4096, 8192};  // of a rank; exchange and layer
  std::vector<int64_t> hidden = {2048, 7168};  // exchange
  std::vector<int64_t> blocks = {16};          // CTAs of a push; exchange. The first: of all else
  int64_t kill_rank = -1;                      // exchange, processes: this rank dies meanwhile
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
  EpOptions ep;                      // of the command "ep"
};

extern const char kHelp[];

// `arguments` without the program's name. Errors: InvalidArgument.
absl::StatusOr<Options> ParseOptions(const std::vector<std::string>& arguments);

// The sizes of a public model with `layers` layers. Errors: InvalidArgument: an unknown name.
absl::StatusOr<ModelConfig> ShapeByName(const std::string& name, int64_t layers);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_OPTIONS_H_
