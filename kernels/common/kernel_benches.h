// The benchmarks of all kernels: <name>/<name>_bench.cc, one function each. They need a device and
// take the memory they need from cudaMalloc.
#ifndef SWITCHYARD_KERNELS_COMMON_KERNEL_BENCHES_H_
#define SWITCHYARD_KERNELS_COMMON_KERNEL_BENCHES_H_

#include <string>
#include <vector>

#include "kernels/common/bench.h"

namespace switchyard::kernels {

void BenchAdamW(Bench& bench);
void BenchCrossEntropy(Bench& bench);
void BenchDispatch(Bench& bench);
void BenchEmbedding(Bench& bench);
void BenchGroupedGemm(Bench& bench);
void BenchMoeBlock(Bench& bench);
void BenchPermute(Bench& bench);
void BenchRankSum(Bench& bench);
void BenchRmsNorm(Bench& bench);
void BenchRope(Bench& bench);
void BenchRouterTopK(Bench& bench);

// Names in the order in which they run: "rmsnorm", ...
std::vector<std::string> KernelBenchNames();

// Runs those whose name is in `names`, all when it is empty. Prints the header and the rows.
// Returns the exit code of a program: 0, 1 when a result was wrong.
int RunKernelBenches(const std::vector<std::string>& names, const std::string& json_file);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_COMMON_KERNEL_BENCHES_H_
