// Bytes: the logits once, ids, weights and rows written once. Four short kernels: launches, not
// bytes, set the time.
#include "kernels/common/bench.h"
#include "kernels/common/kernel_benches.h"
#include "kernels/common/testing.h"
#include "kernels/router_topk/router_topk.h"
#include "kernels/router_topk/router_topk_ref.h"

namespace switchyard::kernels {
namespace {

void RunShape(Bench& bench, int64_t tokens) {
  constexpr int kExperts = 128, kTopK = 8;
  Random random(4);
  const int64_t copies = tokens * kTopK;
  const std::vector<Bf16> host = NormalBf16(tokens * kExperts, 1.f, random);
  DeviceArray<Bf16> logits(host), d_logits(host.size());
  DeviceArray<int32_t> ids(copies), row_of(copies), offsets(kExperts + 1);
  DeviceArray<float> weights(copies), sums(kExperts);
  DeviceArray<uint8_t> workspace(RouterWorkspaceBytes(tokens, kExperts));
  auto forward = [&] {
    CudaOrDie(RouterTopK({logits.get(), ids.get(), weights.get(), row_of.get(), offsets.get(),
                          sums.get(), workspace.get(), tokens, kExperts, kTopK, true, true},
                         nullptr),
              "router");
  };
  forward();
  std::vector<int32_t> want_ids(copies), want_rows(copies), want_offsets(kExperts + 1);
  std::vector<float> want_weights(copies);
  RouterTopKRef({host.data(), want_ids.data(), want_weights.data(), want_rows.data(),
                 want_offsets.data(), nullptr, nullptr, tokens, kExperts, kTopK, true, true});
  bench.Check("router ids", BitDifference(ids.Download(), want_ids));
  bench.Check("router rows", BitDifference(row_of.Download(), want_rows));
  const std::string shape = "T " + std::to_string(tokens) + " E 128 K 8";
  bench.Run({"router top-k + layout", shape, "bf16", 0, 2. * tokens * kExperts + 12. * copies},
            forward);
  auto backward = [&] {
    CudaOrDie(RouterTopKGrad({logits.get(), ids.get(), weights.get(), sums.get(), d_logits.get(),
                              tokens, kExperts, kTopK, true},
                             nullptr),
              "router grad");
  };
  backward();
  const std::vector<float> host_sums = sums.Download(), d_weights = weights.Download(0, kTopK);
  std::vector<Bf16> want_d(kExperts);
  RouterTopKGradRef({host.data(), want_ids.data(), d_weights.data(), host_sums.data(),
                     want_d.data(), 1, kExperts, kTopK, true});
  bench.Check("router grad", Difference(d_logits.Download(0, kExperts), want_d, 1e-2f, 2.f / 128));
  bench.Run({"router grad", shape, "bf16", 0, 4. * tokens * kExperts + 8. * copies}, backward);
}

}  // namespace

void BenchRouterTopK(Bench& bench) {
  RunShape(bench, 8192);
  RunShape(bench, 32768);
}

}  // namespace switchyard::kernels
