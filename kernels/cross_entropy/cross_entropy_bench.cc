// Head of Qwen3-30B-A3B, forward and backward. Flops: three products of tokens x hidden x
// vocabulary. Baseline: Liger's cross entropy on whole bf16 logits (shared/peers/README.md 4), T =
// 8192.
#include "kernels/common/bench.h"
#include "kernels/common/kernel_benches.h"
#include "kernels/common/testing.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/cross_entropy/cross_entropy_ref.h"

namespace switchyard::kernels {
namespace {

constexpr int kHidden = 2048, kVocabulary = 151936;

template <class Out>
void RunHead(Bench& bench, int chunk, const char* dtype) {
  Random random(9);
  const int64_t tokens = 8192;
  const std::vector<Bf16> host_h = NormalBf16(tokens * kHidden, 1.f, random);
  const std::vector<Bf16> some = NormalBf16(999983, 0.02f, random);
  std::vector<Bf16> host_w(size_t{kVocabulary} * kHidden);
  for (size_t i = 0; i < host_w.size(); ++i) host_w[i] = some[i % some.size()];
  std::vector<int32_t> host_labels(tokens);
  for (int32_t& v : host_labels) v = static_cast<int32_t>(random() % kVocabulary);
  DeviceArray<Bf16> h(host_h), w(host_w), dh(host_h.size());
  DeviceArray<int32_t> labels(host_labels);
  DeviceArray<float> scale(std::vector<float>{1.f / tokens}), loss(tokens);
  DeviceArray<Out> dw(host_w.size());
  DeviceArray<uint8_t> workspace(LinearCrossEntropyWorkspaceBytes(chunk, kHidden, kVocabulary));
  const double gib = (dw.bytes() + dh.bytes() + workspace.bytes()) / double(1 << 30);
  auto launch = [&] {
    CudaOrDie(LinearCrossEntropy(
                  LinearCrossEntropyParams<Out>{h.get(), w.get(), labels.get(), scale.get(),
                                                loss.get(), dh.get(), dw.get(), workspace.get(),
                                                tokens, kHidden, kVocabulary, chunk, false},
                  nullptr),
              "head");
  };
  launch();
  std::vector<float> got = loss.Download(), want(1);
  LinearCrossEntropyRef({host_h.data() + 8191 * kHidden, host_w.data(), host_labels.data() + 8191,
                         nullptr, want.data(), nullptr, nullptr, nullptr, 1, kHidden, kVocabulary,
                         1, false});
  bench.Check("loss", Difference(std::vector<float>{got[8191]}, want, 0.02f, 0.f));
  char shape[64];
  std::snprintf(shape, sizeof(shape), "T 8192 chunk %d, %.2f GiB", chunk, gib);
  bench.Run({"linear cross entropy f+b", shape, dtype, 3 * 2. * tokens * kHidden * kVocabulary, 0,
             24800, "Liger CE, 2.93 GiB"},
            launch);
}

void RunRows(Bench& bench) {
  const int64_t rows = 1024;
  Random random(10);
  DeviceArray<Bf16> logits(rows * kVocabulary);
  CudaOrDie(cudaMemset(logits.get(), 0x3c, logits.bytes()), "memset");
  DeviceArray<int32_t> labels(std::vector<int32_t>(rows, 5));
  DeviceArray<float> loss(rows);
  bench.Run({"cross entropy rows f+b", "1024 x 151936", "bf16", 0, 4. * rows * kVocabulary}, [&] {
    CudaOrDie(
        CrossEntropy({logits.get(), labels.get(), nullptr, loss.get(), rows, kVocabulary, true},
                     nullptr),
        "rows");
  });
}

}  // namespace

void BenchCrossEntropy(Bench& bench) {
  RunRows(bench);
  RunHead<Bf16>(bench, 1024, "dW bf16");
  RunHead<Bf16>(bench, 1280, "dW bf16");
  RunHead<float>(bench, 1024, "dW fp32");
}

}  // namespace switchyard::kernels
