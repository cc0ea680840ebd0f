// Sums of one id run in the order of positions on both sides: the same bits.
#include "kernels/embedding/embedding.h"

#include <gtest/gtest.h>

#include "kernels/common/testing.h"
#include "kernels/embedding/embedding_ref.h"

namespace switchyard::kernels {
namespace {

enum class Ids { kRandom, kAllEqual, kFew };

class EmbeddingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

std::vector<int32_t> MakeIds(Ids kind, int64_t tokens, int vocabulary, Random& random) {
  std::vector<int32_t> ids(tokens);
  for (int32_t& id : ids) {
    id = static_cast<int32_t>(
        kind == Ids::kAllEqual ? vocabulary - 1 : random() % (kind == Ids::kFew ? 3 : vocabulary));
  }
  return ids;
}

template <class Out>
void CheckGrad(Ids kind, int64_t tokens, int hidden, int vocabulary, int padding_id) {
  Random random(71);
  const std::vector<int32_t> ids = MakeIds(kind, tokens, vocabulary, random);
  const std::vector<Bf16> d_out = NormalBf16(tokens * hidden, 1.f, random);
  std::vector<Out> want(size_t{1} * vocabulary * hidden);
  for (Out& v : want) v = FromFloat<Out>(NormalFloats(1, 1.f, random)[0]);
  DeviceArray<Out> d_table(want);
  EmbeddingGradRef(EmbeddingGradParams<Out>{d_out.data(), ids.data(), want.data(), nullptr, 0,
                                            tokens, hidden, vocabulary, padding_id});
  DeviceArray<Bf16> dd_out(d_out);
  DeviceArray<int32_t> dids(ids);
  DeviceArray<uint8_t> workspace(EmbeddingGradWorkspaceBytes(tokens));
  const auto bytes = static_cast<int64_t>(workspace.bytes());
  ASSERT_EQ(EmbeddingGrad(
                EmbeddingGradParams<Out>{dd_out.get(), dids.get(), d_table.get(), workspace.get(),
                                         bytes, tokens, hidden, vocabulary, padding_id},
                nullptr),
            cudaSuccess);
  EXPECT_EQ(BitDifference(d_table.Download(), want), "") << tokens << " " << hidden;
}

TEST_F(EmbeddingTest, GradientMatchesTheLoopsBitForBit) {
  for (const Ids kind : {Ids::kRandom, Ids::kAllEqual, Ids::kFew}) {
    for (const auto& [tokens, hidden] : {std::pair{0, 8}, {1, 8}, {517, 264}, {3000, 1032}}) {
      for (const int padding_id : {-1, 1}) {
        CheckGrad<float>(kind, tokens, hidden, 97, padding_id);
        CheckGrad<Bf16>(kind, tokens, hidden, 97, padding_id);
      }
    }
  }
}

TEST_F(EmbeddingTest, LookupCopiesRows) {
  Random random(72);
  const int64_t tokens = 301;
  const int hidden = 2056, vocabulary = 50;
  const std::vector<Bf16> table = NormalBf16(vocabulary * hidden, 1.f, random);
  const std::vector<int32_t> ids = MakeIds(Ids::kRandom, tokens, vocabulary, random);
  std::vector<Bf16> want(tokens * hidden);
  EmbeddingRef({table.data(), ids.data(), want.data(), tokens, hidden});
  DeviceArray<Bf16> dtable(table), out(want.size());
  DeviceArray<int32_t> dids(ids);
  ASSERT_EQ(Embedding({dtable.get(), dids.get(), out.get(), tokens, hidden}, nullptr), cudaSuccess);
  EXPECT_EQ(BitDifference(out.Download(), want), "");
}

TEST_F(EmbeddingTest, RefusesAShortWorkspace) {
  DeviceArray<Bf16> data(64);
  DeviceArray<int32_t> ids(std::vector<int32_t>{0});
  DeviceArray<float> table(64);
  EXPECT_EQ(EmbeddingGrad(EmbeddingGradParams<float>{data.get(), ids.get(), table.get(), data.get(),
                                                     8, 1, 8, 8, -1},
                          nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace switchyard::kernels
