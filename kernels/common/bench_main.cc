// kernels_bench [name...]: the benchmarks without the trainer, for profilers and for a machine
// without torch. The product's program is tests/bench (switchyard-bench).
#include <cstdio>

#include "kernels/common/kernel_benches.h"

int main(int argc, char** argv) {
  using namespace switchyard::kernels;
  const std::vector<std::string> names(argv + 1, argv + argc);
  const std::vector<std::string> known = KernelBenchNames();
  for (const std::string& name : names) {
    bool found = false;
    for (const std::string& each : known) found |= each == name;
    if (found) continue;
    std::fprintf(stderr, "kernels_bench: no benchmark \"%s\"; there are", name.c_str());
    for (const std::string& each : known) std::fprintf(stderr, " %s", each.c_str());
    std::fprintf(stderr, "\n");
    return 2;
  }
  return RunKernelBenches(names, "");
}
