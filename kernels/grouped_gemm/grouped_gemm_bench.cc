// The six products of one expert MLP (Qwen3-30B-A3B: hidden 2048, ffn 768, 128 experts, top 8), on
// rows routed at random. Flops: 2 * rows * (in * out). Baselines: bare torch._grouped_mm on the
// same card (shared/peers/README.md 2, T = 8192).
#include <numeric>

#include "kernels/common/bench.h"
#include "kernels/common/testing.h"
#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/grouped_gemm/grouped_gemm_ref.h"

namespace switchyard::kernels {
namespace {

constexpr int kHidden = 2048, kFfn = 768, kExperts = 128, kTopK = 8;

// Every token takes kTopK distinct experts at random.
std::vector<int32_t> RandomOffsets(int64_t tokens, Random& random) {
  std::vector<int32_t> counts(kExperts, 0), experts(kExperts);
  std::iota(experts.begin(), experts.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int k = 0; k < kTopK; ++k) {
      std::swap(experts[k], experts[k + random() % (kExperts - k)]);
      ++counts[experts[k]];
    }
  }
  std::vector<int32_t> offsets(kExperts + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

// Random bits are cheap to draw once and repeat; products of repeated rows cost what others cost.
std::vector<Bf16> Repeated(size_t size, float scale, Random& random) {
  const std::vector<Bf16> some = NormalBf16(std::min<size_t>(size, 1000003), scale, random);
  std::vector<Bf16> all(size);
  for (size_t i = 0; i < size; i += some.size()) {
    std::copy_n(some.begin(), std::min(some.size(), size - i), all.begin() + i);
  }
  return all;
}

// The rows of one expert, computed by the loops, beside what the device gave for them.
void CheckExpert(Bench& bench, const std::vector<int32_t>& offsets, const std::vector<Bf16>& x,
                 const std::vector<Bf16>& w1, const std::vector<Bf16>& h,
                 const std::vector<Bf16>& z) {
  const int expert = 77;
  const int64_t row = offsets[expert + 1] - 1;
  std::vector<Bf16> want_z(2 * kFfn), want_h(kFfn);
  GroupedUpProjectionRef({x.data() + row * kHidden, w1.data() + size_t{2} * expert * kFfn * kHidden,
                          nullptr, want_z.data(), want_h.data(), nullptr, 1, 1, kHidden, kFfn, 0});
  const std::vector<Bf16> got_z(z.begin() + row * 2 * kFfn, z.begin() + (row + 1) * 2 * kFfn);
  const std::vector<Bf16> got_h(h.begin() + row * kFfn, h.begin() + (row + 1) * kFfn);
  bench.Check("up projection z", Difference(got_z, want_z, 1e-3f, 1.f / 128));
  bench.Check("up projection h", Difference(got_h, want_h, 4e-3f, 4.f / 128));
}

void RunShape(Bench& bench, int64_t tokens) {
  Random random(5);
  const int64_t rows = tokens * kTopK;
  const std::vector<int32_t> offsets = RandomOffsets(tokens, random);
  const std::vector<Bf16> host_x = Repeated(rows * kHidden, 1.f, random);
  const std::vector<Bf16> host_w1 = Repeated(size_t{2} * kExperts * kFfn * kHidden, 0.02f, random);
  DeviceArray<int32_t> device_offsets(offsets);
  DeviceArray<Bf16> x(host_x), w1(host_w1),
      w2(Repeated(size_t{kExperts} * kFfn * kHidden, 0.02f, random));
  DeviceArray<Bf16> z(rows * 2 * kFfn), h(rows * kFfn), y(rows * kHidden), dz(rows * 2 * kFfn);
  DeviceArray<Bf16> dy(Repeated(rows * kHidden, 0.1f, random)), dx(rows * kHidden);
  DeviceArray<float> dp(rows * CeilDiv(kFfn, kDownGradColumns));
  const std::string shape = "T " + std::to_string(tokens) + " E 128 K 8 2048x768";
  const double up_flops = 2. * rows * kHidden * 2 * kFfn, down_flops = up_flops / 2;
  const bool small = tokens == 8192;
  auto run = [&](const char* name, double flops, double peer_us, const char* dtype, auto launch) {
    bench.Run({name, shape, dtype, flops, 0, small ? peer_us : 0, "torch _grouped_mm"},
              [&] { CudaOrDie(launch(), name); });
  };
  const int32_t* off = device_offsets.get();
  run("up projection + swiglu", up_flops, 742, "bf16", [&] {
    return GroupedUpProjection(
        {x.get(), w1.get(), nullptr, z.get(), h.get(), off, rows, kExperts, kHidden, kFfn, 0},
        nullptr);
  });
  CheckExpert(bench, offsets, host_x, host_w1, h.Download(), z.Download());
  run("down projection", down_flops, 422, "bf16", [&] {
    return GroupedLinear({h.get(), w2.get(), y.get(), off, rows, kExperts, kFfn, kHidden, 0},
                         nullptr);
  });
  run("down grad + dswiglu", down_flops, 395, "bf16", [&] {
    return GroupedDownGrad({dy.get(), w2.get(), z.get(), nullptr, dz.get(), h.get(), dp.get(), off,
                            rows, kExperts, kHidden, kFfn, 0},
                           nullptr);
  });
  run("up grad", up_flops, 748, "bf16", [&] {
    return GroupedLinearGrad(
        {dz.get(), w1.get(), dx.get(), off, rows, kExperts, 2 * kFfn, kHidden, 0}, nullptr);
  });
  {
    DeviceArray<Bf16> dw1(w1.size()), dw2(w2.size());
    run("w1 grad", up_flops, 799, "bf16", [&] {
      return GroupedWeightGrad(
          GroupedWeightGradParams<Bf16>{dz.get(), x.get(), dw1.get(), off, rows, kExperts, 2 * kFfn,
                                        kHidden, false, 0},
          nullptr);
    });
    run("w2 grad", down_flops, 464, "bf16", [&] {
      return GroupedWeightGrad(
          GroupedWeightGradParams<Bf16>{dy.get(), h.get(), dw2.get(), off, rows, kExperts, kHidden,
                                        kFfn, false, 0},
          nullptr);
    });
  }
  DeviceArray<float> dw1(w1.size());
  CudaOrDie(cudaMemset(dw1.get(), 0, dw1.bytes()), "memset");
  for (const bool accumulate : {false, true}) {
    run(accumulate ? "w1 grad, add fp32" : "w1 grad, fp32", up_flops, 799, "bf16/fp32", [&] {
      return GroupedWeightGrad(
          GroupedWeightGradParams<float>{dz.get(), x.get(), dw1.get(), off, rows, kExperts,
                                         2 * kFfn, kHidden, accumulate, 0},
          nullptr);
    });
  }
}

// The loss head's products on a chunk of tokens: plain matrices, no groups.
void RunHead(Bench& bench) {
  Random random(6);
  const int rows = 1024, vocabulary = 151936;
  DeviceArray<Bf16> h(Repeated(size_t{1} * rows * kHidden, 1.f, random));
  DeviceArray<Bf16> w(Repeated(size_t{1} * vocabulary * kHidden, 0.02f, random));
  DeviceArray<Bf16> logits(size_t{1} * rows * vocabulary), dw(w.size());
  CudaOrDie(cudaMemset(dw.get(), 0, dw.bytes()), "memset");
  const double flops = 2. * rows * vocabulary * kHidden;
  bench.Run({"head logits", "1024 x 2048 x 151936", "bf16", flops}, [&] {
    CudaOrDie(
        GroupedLinear({h.get(), w.get(), logits.get(), nullptr, rows, 1, kHidden, vocabulary, 0},
                      nullptr),
        "logits");
  });
  bench.Run({"head dW, add", "151936 x 1024 x 2048", "bf16", flops}, [&] {
    CudaOrDie(
        GroupedWeightGrad(GroupedWeightGradParams<Bf16>{logits.get(), h.get(), dw.get(), nullptr,
                                                        rows, 1, vocabulary, kHidden, true, 0},
                          nullptr),
        "dW");
  });
}

}  // namespace
}  // namespace switchyard::kernels

int main(int argc, char** argv) {
  switchyard::kernels::Bench bench(argc, argv);
  switchyard::kernels::RunShape(bench, 8192);
  switchyard::kernels::RunShape(bench, 32768);
  switchyard::kernels::RunHead(bench);
  return bench.ExitCode();
}
