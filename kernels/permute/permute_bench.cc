// Bytes: every token row once, every copy's row once (read or written).
#include <algorithm>
#include <numeric>

#include "kernels/common/bench.h"
#include "kernels/common/kernel_benches.h"
#include "kernels/common/testing.h"
#include "kernels/permute/permute.h"
#include "kernels/permute/permute_ref.h"

namespace switchyard::kernels {
namespace {

void RunShape(Bench& bench, int64_t tokens) {
  constexpr int kHidden = 2048, kTopK = 8;
  Random random(7);
  const int64_t copies = tokens * kTopK;
  std::vector<int32_t> row_of(copies);
  std::iota(row_of.begin(), row_of.end(), 0);
  std::shuffle(row_of.begin(), row_of.end(), random);
  const std::vector<Bf16> host_x = NormalBf16(tokens * kHidden, 1.f, random);
  DeviceArray<Bf16> x(host_x), rows(copies * kHidden), out(tokens * kHidden);
  DeviceArray<float> weight(NormalFloats(copies, 1.f, random)), row_weight(copies);
  DeviceArray<int32_t> device_rows(row_of);
  const double bytes = 2. * kHidden * (tokens + copies) + 12. * copies;
  const std::string shape = "T " + std::to_string(tokens) + " K 8 H 2048";
  auto permute = [&] {
    CudaOrDie(Permute({x.get(), device_rows.get(), weight.get(), rows.get(), row_weight.get(),
                       tokens, kHidden, kTopK},
                      nullptr),
              "permute");
  };
  auto combine = [&] {
    CudaOrDie(Combine({rows.get(), device_rows.get(), nullptr, nullptr, out.get(), nullptr, tokens,
                       copies, kHidden, kTopK, 0},
                      nullptr),
              "combine");
  };
  permute();
  combine();
  // Eight equal rows: the sum is eight times the token, exactly.
  std::vector<Bf16> want(host_x.size());
  for (size_t i = 0; i < want.size(); ++i) want[i] = ToBf16(8.f * ToFloat(host_x[i]));
  bench.Check("permute and combine", BitDifference(out.Download(), want));
  bench.Run({"permute (gather)", shape, "bf16", 0, bytes}, permute);
  bench.Run({"combine", shape, "bf16", 0, bytes - 8. * copies}, combine);
}

}  // namespace

void BenchPermute(Bench& bench) {
  RunShape(bench, 8192);
  RunShape(bench, 32768);
}

}  // namespace switchyard::kernels
