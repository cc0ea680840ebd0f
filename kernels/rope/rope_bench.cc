// Qwen3-30B-A3B: 32 query and 4 key heads of 128 in a fused projection. Bytes: q and k read and
// written (backward: also read again for the norm); tables do not count.
#include "kernels/common/bench.h"
#include "kernels/common/kernel_benches.h"
#include "kernels/common/testing.h"
#include "kernels/rope/rope.h"
#include "kernels/rope/rope_ref.h"

namespace switchyard::kernels {
namespace {

void RunShape(Bench& bench, int64_t tokens) {
  constexpr int kQ = 32, kK = 4, kDim = 128, kLength = 4096;
  constexpr int64_t kStride = (kQ + 2 * kK) * kDim;
  Random random(8);
  const std::vector<Bf16> host = NormalBf16(tokens * kStride, 1.f, random);
  const std::vector<Bf16> host_w = NormalBf16(kDim, 1.f, random);
  std::vector<float> host_cos(kLength * kDim / 2), host_sin(host_cos.size());
  for (size_t i = 0; i < host_cos.size(); ++i) {
    host_cos[i] = RoundBf16(std::cos(0.1f * i));
    host_sin[i] = RoundBf16(std::sin(0.1f * i));
  }
  std::vector<int32_t> host_positions(tokens);
  for (int64_t t = 0; t < tokens; ++t) host_positions[t] = static_cast<int32_t>(t % kLength);
  DeviceArray<Bf16> qkv(host), w(host_w), q(tokens * kQ * kDim), k(tokens * kK * kDim),
      d_qkv(host.size());
  DeviceArray<float> cos(host_cos), sin(host_sin), dqw(kDim), dkw(kDim);
  DeviceArray<float> workspace(size_t{kRopeGradBlocks} * 2 * kDim);
  DeviceArray<int32_t> positions(host_positions);
  const double bytes = 2. * tokens * (kQ + kK) * kDim;
  const std::string shape = "T " + std::to_string(tokens) + " 32/4 heads x 128";
  auto forward = [&] {
    CudaOrDie(
        Rope({qkv.get(), qkv.get() + kQ * kDim, w.get(), w.get(), cos.get(), sin.get(),
              positions.get(), q.get(), k.get(), tokens, kStride, kStride, kQ, kK, kDim, 1e-6f},
             nullptr),
        "rope");
  };
  forward();
  std::vector<Bf16> want_q(kQ * kDim), want_k(kK * kDim);
  RopeRef({host.data(), host.data() + kQ * kDim, host_w.data(), host_w.data(), host_cos.data(),
           host_sin.data(), host_positions.data(), want_q.data(), want_k.data(), 1, kStride,
           kStride, kQ, kK, kDim, 1e-6f});
  bench.Check("rope", Difference(q.Download(0, want_q.size()), want_q, 0.1f, 1.f / 128));
  bench.Run({"qk norm + rope", shape, "bf16", 0, 2 * bytes}, forward);
  auto backward = [&] {
    CudaOrDie(RopeGrad({qkv.get(),
                        qkv.get() + kQ * kDim,
                        w.get(),
                        w.get(),
                        cos.get(),
                        sin.get(),
                        positions.get(),
                        q.get(),
                        k.get(),
                        d_qkv.get(),
                        d_qkv.get() + kQ * kDim,
                        dqw.get(),
                        dkw.get(),
                        workspace.get(),
                        tokens,
                        kStride,
                        kStride,
                        kQ,
                        kK,
                        kDim,
                        1e-6f,
                        false},
                       nullptr),
              "rope grad");
  };
  backward();
  const std::vector<Bf16> dq_out = q.Download(0, want_q.size()),
                          dk_out = k.Download(0, want_k.size());
  std::vector<Bf16> want_d(kStride);
  std::vector<float> want_dqw(kDim), want_dkw(kDim), want_workspace(2 * kDim);
  RopeGradRef({host.data(),
               host.data() + kQ * kDim,
               host_w.data(),
               host_w.data(),
               host_cos.data(),
               host_sin.data(),
               host_positions.data(),
               dq_out.data(),
               dk_out.data(),
               want_d.data(),
               want_d.data() + kQ * kDim,
               want_dqw.data(),
               want_dkw.data(),
               want_workspace.data(),
               1,
               kStride,
               kStride,
               kQ,
               kK,
               kDim,
               1e-6f,
               false});
  want_d.resize((kQ + kK) * kDim);
  bench.Check("rope grad", Difference(d_qkv.Download(0, want_d.size()), want_d, 0.1f, 2.f / 128));
  bench.Run({"qk norm + rope grad", shape, "bf16", 0, 3 * bytes}, backward);
}

}  // namespace

void BenchRope(Bench& bench) {
  RunShape(bench, 8192);
  RunShape(bench, 32768);
}

}  // namespace switchyard::kernels
