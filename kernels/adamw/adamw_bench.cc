// Bytes per parameter: weight, remainder and moments read and written, the gradient read.
#include "kernels/adamw/adamw.h"
#include "kernels/adamw/adamw_ref.h"
#include "kernels/common/bench.h"
#include "kernels/common/kernel_benches.h"
#include "kernels/common/testing.h"

namespace switchyard::kernels {
namespace {

constexpr int64_t kSize = int64_t{1} << 29;

template <class Grad, class Moment>
void RunAdamW(Bench& bench, bool master, const char* name, const char* dtype) {
  DeviceArray<Bf16> weight(kSize);
  DeviceArray<int16_t> remainder(kSize);
  DeviceArray<Moment> m(kSize), v(kSize);
  DeviceArray<Grad> grad(kSize);
  // 0x3c3c: bf16 0.0115, float 0.0115. Time does not depend on the values here.
  for (auto [data, bytes] : {std::pair<void*, size_t>{weight.get(), weight.bytes()},
                             {m.get(), m.bytes()},
                             {v.get(), v.bytes()},
                             {grad.get(), grad.bytes()}}) {
    CudaOrDie(cudaMemset(data, 0x3c, bytes), "memset");
  }
  AdamWParams<Grad, Moment> p{weight.get(),
                              master ? remainder.get() : nullptr,
                              m.get(),
                              v.get(),
                              grad.get(),
                              nullptr,
                              kSize,
                              1,
                              0,
                              {0.9999f, 0.f, 0.1f, 0.95f, 0.05f, 0.7f, 1e-8f, 1e-5f}};
  // All elements are equal, so the first eight, by the loops, tell of all.
  std::vector<Bf16> want(8, Bf16{0x3c3c});
  std::vector<int16_t> want_remainder(8, -1);
  std::vector<Moment> want_m(8), want_v(8);
  std::vector<Grad> eight(8);
  for (auto* data : {static_cast<void*>(want_m.data()), static_cast<void*>(want_v.data())}) {
    std::memset(data, 0x3c, 8 * sizeof(Moment));
  }
  std::memset(eight.data(), 0x3c, 8 * sizeof(Grad));
  AdamWRef(AdamWParams<Grad, Moment>{want.data(),
                                     master ? want_remainder.data() : nullptr,
                                     want_m.data(),
                                     want_v.data(),
                                     eight.data(),
                                     nullptr,
                                     8,
                                     1,
                                     0,
                                     {0.9999f, 0.f, 0.1f, 0.95f, 0.05f, 0.7f, 1e-8f, 1e-5f}});
  CudaOrDie(AdamW(p, nullptr), "adamw");
  std::vector<Bf16> got(8);
  CudaOrDie(cudaMemcpy(got.data(), weight.get(), 16, cudaMemcpyDeviceToHost), "download");
  bench.Check(name, BitDifference(got, want));
  const double bytes =
      double(kSize) * (2 * 2 + (master ? 2 * 2 : 0) + 4 * sizeof(Moment) + sizeof(Grad));
  bench.Run({name, "512 Mi parameters", dtype, 0, bytes},
            [&] { CudaOrDie(AdamW(p, nullptr), "adamw"); });
}

void RunNorm(Bench& bench) {
  DeviceArray<Bf16> grad(kSize);
  CudaOrDie(cudaMemset(grad.get(), 0x3c, grad.bytes()), "memset");
  DeviceArray<float> partial(kNormPartials);
  DeviceArray<StepControl> control(1);
  auto launch = [&] {
    CudaOrDie(GradNorm(GradNormParams<Bf16>{grad.get(), partial.get(), kSize}, nullptr), "norm");
    CudaOrDie(FinishGradNorm({partial.get(), control.get(), kNormPartials, 1.f, 1.f}, nullptr),
              "finish");
  };
  launch();
  const double value = ToFloat(Bf16{0x3c3c});
  bench.Check("norm",
              Difference(std::vector<float>{control.Download()[0].norm},
                         {static_cast<float>(value * std::sqrt(double(kSize)))}, 0.f, 1e-4f));
  bench.Run({"gradient norm", "512 Mi parameters", "bf16", 0, 2. * kSize}, launch);
}

}  // namespace

void BenchAdamW(Bench& bench) {
  RunAdamW<Bf16, Bf16>(bench, true, "adamw, exact master", "g16 m16");
  RunAdamW<float, Bf16>(bench, true, "adamw, exact master", "g32 m16");
  RunAdamW<float, float>(bench, true, "adamw, exact master", "g32 m32");
  RunAdamW<Bf16, Bf16>(bench, false, "adamw, no master", "g16 m16");
  RunNorm(bench);
}

}  // namespace switchyard::kernels
