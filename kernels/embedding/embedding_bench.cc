// Bytes: every token row read once, every row of an id that occurs read and written in fp32.
#include <set>

#include "kernels/common/bench.h"
#include "kernels/common/kernel_benches.h"
#include "kernels/common/testing.h"
#include "kernels/embedding/embedding.h"
#include "kernels/embedding/embedding_ref.h"

namespace switchyard::kernels {
namespace {

// Ids as text has them: frequency falls like 1 / rank.
std::vector<int32_t> ZipfIds(int64_t tokens, int vocabulary, Random& random) {
  std::uniform_real_distribution<double> uniform(0, std::log(double(vocabulary)));
  std::vector<int32_t> ids(tokens);
  for (int32_t& id : ids) id = static_cast<int32_t>(std::exp(uniform(random))) % vocabulary;
  return ids;
}

void RunShape(Bench& bench, int64_t tokens) {
  constexpr int kHidden = 2048, kVocabulary = 151936;
  Random random(9);
  const std::vector<int32_t> host_ids = ZipfIds(tokens, kVocabulary, random);
  const double distinct = std::set<int32_t>(host_ids.begin(), host_ids.end()).size();
  const std::vector<Bf16> host = NormalBf16(tokens * kHidden, 1.f, random);
  DeviceArray<Bf16> d_out(host);
  DeviceArray<int32_t> ids(host_ids);
  DeviceArray<float> table(size_t{kVocabulary} * kHidden);
  CudaOrDie(cudaMemset(table.get(), 0, table.bytes()), "memset");
  DeviceArray<uint8_t> workspace(EmbeddingGradWorkspaceBytes(tokens));
  auto launch = [&] {
    CudaOrDie(EmbeddingGrad(
                  EmbeddingGradParams<float>{d_out.get(), ids.get(), table.get(), workspace.get(),
                                             static_cast<int64_t>(workspace.bytes()), tokens,
                                             kHidden, kVocabulary, -1},
                  nullptr),
              "embedding grad");
  };
  launch();
  std::vector<float> want(size_t{kVocabulary} * kHidden, 0.f);
  EmbeddingGradRef(EmbeddingGradParams<float>{host.data(), host_ids.data(), want.data(), nullptr, 0,
                                              tokens, kHidden, kVocabulary, -1});
  bench.Check("embedding grad", BitDifference(table.Download(), want));
  bench.Run({"embedding grad", "T " + std::to_string(tokens) + " H 2048, zipf", "bf16/fp32", 0,
             2. * tokens * kHidden + 8. * distinct * kHidden},
            launch);
}

}  // namespace

void BenchEmbedding(Bench& bench) {
  RunShape(bench, 8192);
  RunShape(bench, 32768);
}

}  // namespace switchyard::kernels
