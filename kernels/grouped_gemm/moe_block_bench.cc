// The expert block of one layer as the trainer runs it, from unsorted tokens to summed outputs and
// back: permute, up projection, down projection, combine; and permute of the output gradient, down
// grad, up grad, both weight gradients, combine. The routing is done before. Flops: 2 * T * K * 3 *
// H * I forward, twice that backward. Baseline: torch._grouped_mm path under torch.compile on the
// same card (shared/peers/README.md 2).
#include <algorithm>
#include <numeric>

#include "kernels/common/bench.h"
#include "kernels/common/kernel_benches.h"
#include "kernels/common/testing.h"
#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/grouped_gemm/grouped_gemm_ref.h"
#include "kernels/permute/permute.h"

namespace switchyard::kernels {
namespace {

constexpr int kHidden = 2048, kFfn = 768, kExperts = 128, kTopK = 8;

struct Routing {
  std::vector<int32_t> offsets, row_of, ids;
};

// Every token takes kTopK distinct experts at random; rows of an expert keep the order of tokens.
Routing RandomRouting(int64_t tokens, Random& random) {
  Routing r;
  r.offsets.assign(kExperts + 1, 0);
  r.ids.resize(tokens * kTopK);
  r.row_of.resize(tokens * kTopK);
  std::vector<int32_t> experts(kExperts);
  std::iota(experts.begin(), experts.end(), 0);
  for (int64_t n = 0; n < tokens * kTopK; ++n) {
    const int k = static_cast<int>(n % kTopK);
    std::swap(experts[k], experts[k + random() % (kExperts - k)]);
    r.ids[n] = experts[k];
    ++r.offsets[experts[k] + 1];
  }
  std::partial_sum(r.offsets.begin(), r.offsets.end(), r.offsets.begin());
  std::vector<int32_t> next(r.offsets.begin(), r.offsets.end() - 1);
  for (int64_t n = 0; n < tokens * kTopK; ++n) r.row_of[n] = next[r.ids[n]]++;
  return r;
}

// The last token's output by plain loops.
std::vector<Bf16> LastToken(const Routing& r, const std::vector<Bf16>& x,
                            const std::vector<Bf16>& w1, const std::vector<Bf16>& w2,
                            const std::vector<float>& weight, int64_t tokens) {
  std::vector<float> sum(kHidden, 0.f);
  for (int k = 0; k < kTopK; ++k) {
    const int64_t n = (tokens - 1) * kTopK + k;
    std::vector<Bf16> z(2 * kFfn), h(kFfn), y(kHidden);
    GroupedUpProjectionRef({x.data() + (tokens - 1) * kHidden,
                            w1.data() + size_t{2} * r.ids[n] * kFfn * kHidden, &weight[n], z.data(),
                            h.data(), nullptr, 1, 1, kHidden, kFfn, 0});
    GroupedLinearRef({h.data(), w2.data() + size_t{1} * r.ids[n] * kFfn * kHidden, y.data(),
                      nullptr, 1, 1, kFfn, kHidden, 0});
    for (int i = 0; i < kHidden; ++i) sum[i] += ToFloat(y[i]);
  }
  std::vector<Bf16> out(kHidden);
  for (int i = 0; i < kHidden; ++i) out[i] = ToBf16(sum[i]);
  return out;
}

template <class Grad>
void RunShape(Bench& bench, int64_t tokens, const char* dtype, double forward_us, double both_us) {
  Random random(5);
  const int64_t rows = tokens * kTopK;
  const Routing routing = RandomRouting(tokens, random);
  const std::vector<Bf16> host_x = RepeatedBf16(tokens * kHidden, 1.f, random);
  const std::vector<Bf16> host_w1 =
      RepeatedBf16(size_t{2} * kExperts * kFfn * kHidden, 0.02f, random);
  const std::vector<Bf16> host_w2 =
      RepeatedBf16(size_t{1} * kExperts * kFfn * kHidden, 0.02f, random);
  std::vector<float> host_weight(rows);
  for (float& w : host_weight) w = 0.02f + 0.001f * (random() % 200);
  DeviceArray<int32_t> offsets(routing.offsets), row_of(routing.row_of);
  DeviceArray<Bf16> x(host_x), w1(host_w1), w2(host_w2), out(tokens * kHidden);
  DeviceArray<Bf16> d_out(RepeatedBf16(tokens * kHidden, 0.1f, random)), dx(tokens * kHidden);
  DeviceArray<float> weight(host_weight), row_weight(rows), d_weight(rows);
  // x by expert, z and p are what the backward needs; y doubles as the gradient of the rows.
  DeviceArray<Bf16> x_rows(rows * kHidden), z(rows * 2 * kFfn), h(rows * kFfn), y(rows * kHidden);
  DeviceArray<Bf16> dz(rows * 2 * kFfn), dx_rows(rows * kHidden);
  const int partials = static_cast<int>(CeilDiv(kFfn, kDownGradColumns));
  DeviceArray<float> dp(rows * partials);
  DeviceArray<Grad> dw1(host_w1.size()), dw2(host_w2.size());
  const int32_t* off = offsets.get();
  auto forward = [&] {
    CudaOrDie(Permute({x.get(), row_of.get(), weight.get(), x_rows.get(), row_weight.get(), tokens,
                       kHidden, kTopK},
                      nullptr),
              "permute");
    CudaOrDie(GroupedUpProjection({x_rows.get(), w1.get(), row_weight.get(), z.get(), h.get(), off,
                                   rows, kExperts, kHidden, kFfn, 0},
                                  nullptr),
              "up");
    CudaOrDie(
        GroupedLinear({h.get(), w2.get(), y.get(), off, rows, kExperts, kFfn, kHidden, 0}, nullptr),
        "down");
    CudaOrDie(Combine({y.get(), row_of.get(), nullptr, nullptr, out.get(), nullptr, tokens, rows,
                       kHidden, kTopK, 0},
                      nullptr),
              "combine");
  };
  auto backward = [&] {
    CudaOrDie(
        Permute({d_out.get(), row_of.get(), nullptr, y.get(), nullptr, tokens, kHidden, kTopK},
                nullptr),
        "permute");
    CudaOrDie(GroupedDownGrad({y.get(), w2.get(), z.get(), row_weight.get(), dz.get(), h.get(),
                               dp.get(), off, rows, kExperts, kHidden, kFfn, 0},
                              nullptr),
              "down grad");
    CudaOrDie(GroupedLinearGrad(
                  {dz.get(), w1.get(), dx_rows.get(), off, rows, kExperts, 2 * kFfn, kHidden, 0},
                  nullptr),
              "up grad");
    CudaOrDie(
        GroupedWeightGrad(GroupedWeightGradParams<Grad>{y.get(), h.get(), dw2.get(), off, rows,
                                                        kExperts, kHidden, kFfn, false, 0},
                          nullptr),
        "w2 grad");
    CudaOrDie(GroupedWeightGrad(
                  GroupedWeightGradParams<Grad>{dz.get(), x_rows.get(), dw1.get(), off, rows,
                                                kExperts, 2 * kFfn, kHidden, false, 0},
                  nullptr),
              "w1 grad");
    CudaOrDie(Combine({dx_rows.get(), row_of.get(), nullptr, dp.get(), dx.get(), d_weight.get(),
                       tokens, rows, kHidden, kTopK, partials},
                      nullptr),
              "combine");
  };
  forward();
  std::vector<Bf16> got = out.Download();
  got.erase(got.begin(), got.end() - kHidden);
  bench.Check("moe block",
              Difference(got, LastToken(routing, host_x, host_w1, host_w2, host_weight, tokens),
                         2e-3f, 4.f / 128));
  const std::string shape = "T " + std::to_string(tokens) + " E 128 K 8 2048x768";
  const double flops = 2. * rows * 3 * kHidden * kFfn;
  bench.Run({"moe block forward", shape, dtype, flops, 0, forward_us, "compiled torch"}, forward);
  bench.Run({"moe block forward+backward", shape, dtype, 3 * flops, 0, both_us, "compiled torch"},
            [&] {
              forward();
              backward();
            });
}

}  // namespace

void BenchMoeBlock(Bench& bench) {
  RunShape<Bf16>(bench, 8192, "bf16", 1850, 5200);
  RunShape<float>(bench, 8192, "dW fp32", 1850, 5200);
  RunShape<Bf16>(bench, 32768, "bf16", 6300, 17810);
  RunShape<float>(bench, 32768, "dW fp32", 6300, 17810);
}

}  // namespace switchyard::kernels
