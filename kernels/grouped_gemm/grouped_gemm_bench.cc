// The six products of one expert MLP (Qwen3-30B-A3B: hidden 2048, ffn 768, 128 experts, top 8), on
// rows routed at random. Flops: 2 * rows * (in * out). Baselines: bare torch._grouped_mm on the
// same card (shared/peers/README.md 2, T = 8192).
#include <numeric>

#include "kernels/common/bench.h"
#include "kernels/common/kernel_benches.h"
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

// Device arrays of one shape and, by the loops, what they must hold for one expert: its last row,
// or the first kSlice rows of its weight gradients.
struct Products {
  static constexpr int kExpert = 77, kSlice = 8;

  Products(int64_t tokens, Random& random)
      : rows(tokens * kTopK),
        host_offsets(RandomOffsets(tokens, random)),
        offsets(host_offsets),
        x(RepeatedBf16(rows * kHidden, 1.f, random)),
        w1(RepeatedBf16(size_t{2} * kExperts * kFfn * kHidden, 0.02f, random)),
        w2(RepeatedBf16(size_t{kExperts} * kFfn * kHidden, 0.02f, random)),
        dy(RepeatedBf16(rows * kHidden, 0.1f, random)),
        z(rows * 2 * kFfn),
        h(rows * kFfn),
        y(rows * kHidden),
        dz(rows * 2 * kFfn),
        dx(rows * kHidden),
        dp(rows * kPartials) {}

  static constexpr int kPartials = static_cast<int>(CeilDiv(kFfn, kDownGradColumns));
  int64_t rows;
  std::vector<int32_t> host_offsets;
  DeviceArray<int32_t> offsets;
  DeviceArray<Bf16> x, w1, w2, dy, z, h, y, dz, dx;
  DeviceArray<float> dp;

  std::vector<Bf16> LastRow(const DeviceArray<Bf16>& all, int width) const {
    return all.Download((host_offsets[kExpert + 1] - 1) * int64_t{width}, width);
  }
  std::vector<Bf16> Weight(const DeviceArray<Bf16>& all) const {
    return all.Download(kExpert * (all.size() / kExperts), all.size() / kExperts);
  }

  void CheckUp(Bench& bench) const {
    std::vector<Bf16> want_z(2 * kFfn), want_h(kFfn);
    const std::vector<Bf16> in = LastRow(x, kHidden), weight = Weight(w1);
    GroupedUpProjectionRef({in.data(), weight.data(), nullptr, want_z.data(), want_h.data(),
                            nullptr, 1, 1, kHidden, kFfn, 0});
    bench.Check("up projection z", Difference(LastRow(z, 2 * kFfn), want_z, 1e-3f, 1.f / 128));
    bench.Check("up projection h", Difference(LastRow(h, kFfn), want_h, 4e-3f, 4.f / 128));
  }
  void CheckDown(Bench& bench) const {
    std::vector<Bf16> want(kHidden);
    const std::vector<Bf16> in = LastRow(h, kFfn), weight = Weight(w2);
    GroupedLinearRef({in.data(), weight.data(), want.data(), nullptr, 1, 1, kFfn, kHidden, 0});
    bench.Check("down projection", Difference(LastRow(y, kHidden), want, 1e-3f, 1.f / 128));
  }
  void CheckDownGrad(Bench& bench) const {
    std::vector<Bf16> want_dz(2 * kFfn), want_h(kFfn);
    std::vector<float> want_dp(kPartials);
    const std::vector<Bf16> in = LastRow(dy, kHidden), weight = Weight(w2),
                            in_z = LastRow(z, 2 * kFfn);
    GroupedDownGradRef({in.data(), weight.data(), in_z.data(), nullptr, want_dz.data(),
                        want_h.data(), want_dp.data(), nullptr, 1, 1, kHidden, kFfn, 0});
    bench.Check("down grad dz", Difference(LastRow(dz, 2 * kFfn), want_dz, 1e-3f, 2.f / 128));
    bench.Check("down grad h", Difference(LastRow(h, kFfn), want_h, 1e-3f, 2.f / 128));
  }
  void CheckUpGrad(Bench& bench) const {
    std::vector<Bf16> want(kHidden);
    const std::vector<Bf16> in = LastRow(dz, 2 * kFfn), weight = Weight(w1);
    GroupedLinearGradRef(
        {in.data(), weight.data(), want.data(), nullptr, 1, 1, 2 * kFfn, kHidden, 0});
    bench.Check("up grad", Difference(LastRow(dx, kHidden), want, 1e-3f, 1.f / 128));
  }
  // `got` is a [kExperts, m, n] gradient of `a` [rows, m] and `b` [rows, n], written, not added.
  template <class Out>
  void CheckWeightGrad(Bench& bench, const char* name, const DeviceArray<Out>& got,
                       const DeviceArray<Bf16>& a, const DeviceArray<Bf16>& b, int m, int n) const {
    const int64_t begin = host_offsets[kExpert];
    const int64_t count = host_offsets[kExpert + 1] - begin;
    const std::vector<Bf16> all_a = a.Download(begin * m, count * m);
    const std::vector<Bf16> in_b = b.Download(begin * n, count * n);
    std::vector<Bf16> in_a(count * kSlice);
    for (int64_t row = 0; row < count; ++row) {
      std::copy_n(all_a.begin() + row * m, kSlice, in_a.begin() + row * kSlice);
    }
    std::vector<Out> want(size_t{kSlice} * n);
    GroupedWeightGradRef(GroupedWeightGradParams<Out>{in_a.data(), in_b.data(), want.data(),
                                                      nullptr, count, 1, kSlice, n, false, 0});
    bench.Check(name, Difference(got.Download(int64_t{kExpert} * m * n, want.size()), want, 2e-3f,
                                 sizeof(Out) == 4 ? 1e-3f : 1.f / 128));
  }
};

template <class Out>
void RunWeightGrads(Bench& bench, Products& d, const std::string& shape, const char* dtype,
                    bool small) {
  DeviceArray<Out> dw1(d.w1.size()), dw2(d.w2.size());
  const double flops = 2. * d.rows * kHidden * 2 * kFfn;
  auto w1_grad = [&](bool accumulate) {
    CudaOrDie(GroupedWeightGrad(
                  GroupedWeightGradParams<Out>{d.dz.get(), d.x.get(), dw1.get(), d.offsets.get(),
                                               d.rows, kExperts, 2 * kFfn, kHidden, accumulate, 0},
                  nullptr),
              "w1 grad");
  };
  auto w2_grad = [&] {
    CudaOrDie(GroupedWeightGrad(
                  GroupedWeightGradParams<Out>{d.dy.get(), d.h.get(), dw2.get(), d.offsets.get(),
                                               d.rows, kExperts, kHidden, kFfn, false, 0},
                  nullptr),
              "w2 grad");
  };
  w1_grad(false);
  w2_grad();
  d.CheckWeightGrad(bench, "w1 grad", dw1, d.dz, d.x, 2 * kFfn, kHidden);
  d.CheckWeightGrad(bench, "w2 grad", dw2, d.dy, d.h, kHidden, kFfn);
  bench.Run({"w1 grad", shape, dtype, flops, 0, small ? 799. : 0., "torch _grouped_mm"},
            [&] { w1_grad(false); });
  bench.Run({"w1 grad, add", shape, dtype, flops, 0, small ? 799. : 0., "torch _grouped_mm"},
            [&] { w1_grad(true); });
  bench.Run({"w2 grad", shape, dtype, flops / 2, 0, small ? 464. : 0., "torch _grouped_mm"},
            w2_grad);
}

void RunShape(Bench& bench, int64_t tokens) {
  Random random(5);
  Products d(tokens, random);
  const std::string shape = "T " + std::to_string(tokens) + " E 128 K 8 2048x768";
  const double up_flops = 2. * d.rows * kHidden * 2 * kFfn, down_flops = up_flops / 2;
  const bool small = tokens == 8192;
  const int32_t* offsets = d.offsets.get();
  // The first launch is checked, then the others are timed.
  auto run = [&](const char* name, double flops, double peer_us, auto launch, auto check) {
    CudaOrDie(launch(), name);
    check();
    bench.Run({name, shape, "bf16", flops, 0, small ? peer_us : 0, "torch _grouped_mm"},
              [&] { CudaOrDie(launch(), name); });
  };
  run(
      "up projection + swiglu", up_flops, 742,
      [&] {
        return GroupedUpProjection({d.x.get(), d.w1.get(), nullptr, d.z.get(), d.h.get(), offsets,
                                    d.rows, kExperts, kHidden, kFfn, 0},
                                   nullptr);
      },
      [&] { d.CheckUp(bench); });
  run(
      "down projection", down_flops, 422,
      [&] {
        return GroupedLinear(
            {d.h.get(), d.w2.get(), d.y.get(), offsets, d.rows, kExperts, kFfn, kHidden, 0},
            nullptr);
      },
      [&] { d.CheckDown(bench); });
  run(
      "down grad + dswiglu", down_flops, 395,
      [&] {
        return GroupedDownGrad({d.dy.get(), d.w2.get(), d.z.get(), nullptr, d.dz.get(), d.h.get(),
                                d.dp.get(), offsets, d.rows, kExperts, kHidden, kFfn, 0},
                               nullptr);
      },
      [&] { d.CheckDownGrad(bench); });
  run(
      "up grad", up_flops, 748,
      [&] {
        return GroupedLinearGrad(
            {d.dz.get(), d.w1.get(), d.dx.get(), offsets, d.rows, kExperts, 2 * kFfn, kHidden, 0},
            nullptr);
      },
      [&] { d.CheckUpGrad(bench); });
  RunWeightGrads<Bf16>(bench, d, shape, "bf16", small);
  RunWeightGrads<float>(bench, d, shape, "dW fp32", small);
}

// The loss head's products on a chunk of tokens: plain matrices, no groups.
void RunHead(Bench& bench) {
  Random random(6);
  const int rows = 1024, vocabulary = 151936;
  DeviceArray<Bf16> h(RepeatedBf16(size_t{1} * rows * kHidden, 1.f, random));
  DeviceArray<Bf16> w(RepeatedBf16(size_t{1} * vocabulary * kHidden, 0.02f, random));
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

void BenchGroupedGemm(Bench& bench) {
  RunShape(bench, 8192);
  RunShape(bench, 32768);
  RunHead(bench);
}

}  // namespace switchyard::kernels
