// switchyard-bench: measures kernels, steps, layers and expert parallelism. Flags and dispatch; no
// logic.
#include <c10/util/Exception.h>

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "tests/bench/ep_bench.h"
#include "tests/bench/options.h"
#include "tests/bench/step_bench.h"
#include "tests/bench/timeline.h"
#ifdef SY_CUDA
#include "kernels/common/kernel_benches.h"
#endif

namespace switchyard::bench {
namespace {

constexpr int kExitUsage = 2;

int RunKernels(const Options& options) {
#ifdef SY_CUDA
  return kernels::RunKernelBenches(options.kernels, options.json);
#else
  (void)options;
  std::fprintf(stderr, "switchyard-bench: kernels: this build has no CUDA\n");
  return kExitUsage;
#endif
}

int Main(int argc, char** argv) {
  const absl::StatusOr<Options> options =
      ParseOptions(std::vector<std::string>(argv + 1, argv + argc));
  if (!options.ok()) {
    std::fprintf(stderr, "switchyard-bench: %s; --help\n",
                 std::string(options.status().message()).c_str());
    return kExitUsage;
  }
  if (options->help) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  try {
    switch (options->command) {
      case Command::kKernels:
        return RunKernels(*options);
      case Command::kStep:
        return RunStep(*options);
      case Command::kLayers:
        return RunLayers(*options);
      case Command::kTimeline:
        return RunTimeline(*options);
      case Command::kEp:
        return RunEp(*options);
    }
  } catch (const c10::Error& e) {
    std::fprintf(stderr, "switchyard-bench: %s\n", e.what_without_backtrace());
    return 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "switchyard-bench: %s\n", e.what());
    return 1;
  }
  return kExitUsage;
}

}  // namespace
}  // namespace switchyard::bench

int main(int argc, char** argv) { return switchyard::bench::Main(argc, argv); }
