// Bytes: each tensor once; the weight and rstd do not count.
#include "kernels/common/bench.h"
#include "kernels/common/kernel_benches.h"
#include "kernels/common/testing.h"
#include "kernels/rmsnorm/rmsnorm.h"
#include "kernels/rmsnorm/rmsnorm_ref.h"

namespace switchyard::kernels {
namespace {

void RunShape(Bench& bench, int64_t tokens) {
  constexpr int kHidden = 2048;
  Random random(3);
  const size_t size = tokens * kHidden;
  const std::vector<Bf16> host_x = NormalBf16(size, 1.f, random),
                          host_w = NormalBf16(kHidden, 1.f, random);
  DeviceArray<Bf16> x(host_x), residual(host_x), weight(host_w), sum(size), out(size), dx(size);
  DeviceArray<float> rstd(tokens), d_weight(kHidden), workspace(size_t{kNormGradBlocks} * kHidden);
  const std::string shape = "T " + std::to_string(tokens) + " H 2048";
  auto forward = [&](bool adds) {
    CudaOrDie(RmsNorm({x.get(), adds ? residual.get() : nullptr, weight.get(), sum.get(), out.get(),
                       rstd.get(), tokens, kHidden, 1e-6f, NormKind::kLlama},
                      nullptr),
              "rmsnorm");
  };
  forward(true);
  std::vector<Bf16> want_sum(kHidden), want(kHidden);
  RmsNormRef({host_x.data(), host_x.data(), host_w.data(), want_sum.data(), want.data(), nullptr, 1,
              kHidden, 1e-6f, NormKind::kLlama});
  bench.Check("rmsnorm", Difference(out.Download(0, kHidden), want, 0.f, 2.f / 128));
  bench.Run({"rmsnorm", shape, "bf16", 0, 2. * 2 * size}, [&] { forward(false); });
  bench.Run({"rmsnorm + residual", shape, "bf16", 0, 2. * 4 * size}, [&] { forward(true); });
  auto backward = [&] {
    CudaOrDie(
        RmsNormGrad({sum.get(), weight.get(), rstd.get(), out.get(), residual.get(), dx.get(),
                     d_weight.get(), workspace.get(), tokens, kHidden, false, NormKind::kLlama},
                    nullptr),
        "grad");
  };
  forward(true);
  backward();
  const std::vector<Bf16> row_sum = sum.Download(0, kHidden), row_out = out.Download(0, kHidden);
  const std::vector<float> row_rstd = rstd.Download(0, 1);
  std::vector<float> one_weight_grad(kHidden), one_workspace(kHidden);
  RmsNormGradRef({row_sum.data(), host_w.data(), row_rstd.data(), row_out.data(), host_x.data(),
                  want.data(), one_weight_grad.data(), one_workspace.data(), 1, kHidden, false,
                  NormKind::kLlama});
  bench.Check("rmsnorm grad", Difference(dx.Download(0, kHidden), want, 1e-2f, 2.f / 128));
  bench.Run({"rmsnorm grad + residual", shape, "bf16", 0, 2. * 4 * size}, backward);
}

}  // namespace

void BenchRmsNorm(Bench& bench) {
  RunShape(bench, 8192);
  RunShape(bench, 32768);
}

}  // namespace switchyard::kernels
