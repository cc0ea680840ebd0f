// Bytes: every part read once, the sum written once.
#include "kernels/common/bench.h"
#include "kernels/common/kernel_benches.h"
#include "kernels/common/testing.h"
#include "kernels/rank_sum/rank_sum.h"
#include "kernels/rank_sum/rank_sum_ref.h"

namespace switchyard::kernels {
namespace {

void RunShape(Bench& bench, int ranks, int64_t size) {
  Random random(9);
  const std::vector<Bf16> host = NormalBf16(ranks * size, 1.f, random);
  DeviceArray<Bf16> parts(host), out(size);
  auto launch = [&] {
    CudaOrDie(RankSum(RankSumParams<Bf16>{parts.get(), out.get(), size, ranks}, nullptr),
              "rank sum");
  };
  launch();
  std::vector<Bf16> want(size);
  RankSumRef(RankSumParams<Bf16>{host.data(), want.data(), size, ranks});
  bench.Check("rank sum", BitDifference(out.Download(), want));
  bench.Run({"rank sum", std::to_string(ranks) + " ranks, " + std::to_string(size), "bf16", 0,
             2. * (ranks + 1) * size},
            launch);
}

}  // namespace

// A slice of a dense block of Qwen3-30B-A3B, on 2 and on 8 ranks.
void BenchRankSum(Bench& bench) {
  RunShape(bench, 2, 19'131'392 / 2);
  RunShape(bench, 8, 19'131'392 / 8);
}

}  // namespace switchyard::kernels
