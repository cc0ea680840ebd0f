#include "kernels/cross_entropy/cross_entropy.h"

#include <gtest/gtest.h>

#include "kernels/common/testing.h"
#include "kernels/cross_entropy/cross_entropy_ref.h"

namespace switchyard::kernels {
namespace {

class CrossEntropyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

// Every third token ignored; the others anywhere, the ends included.
std::vector<int32_t> Labels(int64_t rows, int vocabulary, Random& random) {
  std::vector<int32_t> labels(rows);
  for (int64_t i = 0; i < rows; ++i) {
    labels[i] = i % 3 == 2 ? -100 : static_cast<int32_t>(random() % vocabulary);
  }
  if (rows > 0) labels[0] = vocabulary - 1;
  if (rows > 1) labels[1] = 0;
  return labels;
}

TEST_F(CrossEntropyTest, RowsMatchTheLoops) {
  for (const auto& [rows, vocabulary] :
       {std::pair{0, 64}, {1, 8}, {5, 1000}, {7, 40000}, {4, 151936}, {2, 262144}}) {
    for (const float spread : {1.f, 20.f}) {
      Random random(51);
      std::vector<Bf16> logits = NormalBf16(size_t{1} * rows * vocabulary, spread, random);
      const std::vector<int32_t> labels = Labels(rows, vocabulary, random);
      const std::vector<float> scale = {0.37f};
      std::vector<float> loss(rows);
      DeviceArray<Bf16> dlogits(logits);
      DeviceArray<int32_t> dlabels(labels);
      DeviceArray<float> dscale(scale), dloss(rows);
      for (const bool gradient : {false, true}) {
        CrossEntropyRef(
            {logits.data(), labels.data(), scale.data(), loss.data(), rows, vocabulary, gradient});
        ASSERT_EQ(CrossEntropy({dlogits.get(), dlabels.get(), dscale.get(), dloss.get(), rows,
                                vocabulary, gradient},
                               nullptr),
                  cudaSuccess);
        EXPECT_EQ(Difference(dloss.Download(), loss, 1e-4f, 1e-5f), "") << vocabulary;
        EXPECT_EQ(Difference(dlogits.Download(), logits, 1e-7f, 1.f / 128), "")
            << vocabulary << gradient;
      }
    }
  }
}

template <class Out>
void CheckHead(int64_t tokens, int hidden, int vocabulary, int chunk, bool accumulate) {
  Random random(52);
  const std::vector<Bf16> h = NormalBf16(tokens * hidden, 1.f, random);
  const std::vector<Bf16> w = NormalBf16(size_t{1} * vocabulary * hidden, 0.1f, random);
  const std::vector<int32_t> labels = Labels(tokens, vocabulary, random);
  const std::vector<float> scale = {0.5f};
  std::vector<float> loss(tokens), dw(w.size());
  std::uniform_int_distribution<int> uniform(-2, 2);
  for (float& v : dw) v = static_cast<float>(uniform(random));
  std::vector<Out> start(dw.size());
  for (size_t i = 0; i < dw.size(); ++i) start[i] = FromFloat<Out>(dw[i]);
  std::vector<Bf16> dh(h.size());
  LinearCrossEntropyRef({h.data(), w.data(), labels.data(), scale.data(), loss.data(), dh.data(),
                         dw.data(), nullptr, tokens, hidden, vocabulary, chunk, accumulate});
  DeviceArray<Bf16> device_h(h), device_w(w), device_dh(dh.size());
  DeviceArray<int32_t> device_labels(labels);
  DeviceArray<float> device_scale(scale), device_loss(tokens);
  DeviceArray<Out> device_dw(start);
  DeviceArray<uint8_t> workspace(LinearCrossEntropyWorkspaceBytes(chunk, hidden, vocabulary));
  ASSERT_EQ(LinearCrossEntropy(
                LinearCrossEntropyParams<Out>{device_h.get(), device_w.get(), device_labels.get(),
                                              device_scale.get(), device_loss.get(),
                                              device_dh.get(), device_dw.get(), workspace.get(),
                                              tokens, hidden, vocabulary, chunk, accumulate},
                nullptr),
            cudaSuccess);
  // Logits of size 1 to 3 may round to bf16 the other way: 0.008 in the loss, relative in the
  // gradients.
  EXPECT_EQ(Difference(device_loss.Download(), loss, 0.02f, 0.f), "");
  EXPECT_EQ(Difference(device_dh.Download(), dh, 1e-3f, 1.f / 64), "");
  std::vector<Out> want(dw.size());
  for (size_t i = 0; i < dw.size(); ++i) want[i] = FromFloat<Out>(dw[i]);
  // Bf16 rounds once per chunk: up to ten times half an ulp of the values of size 2 to 4 that it
  // starts with, which later sums may cancel.
  const float atol = sizeof(Out) == 2 && accumulate ? 10 * 0.0078f : 5e-3f;
  const float rtol = sizeof(Out) == 2 ? 3.f / 128 : 1e-3f;
  EXPECT_EQ(Difference(device_dw.Download(), want, atol, rtol), "") << vocabulary << " " << chunk;
}

TEST_F(CrossEntropyTest, HeadMatchesTheLoopsForAnyChunk) {
  for (const int chunk : {16, 64, 1024}) {
    for (const bool accumulate : {false, true}) {
      CheckHead<float>(150, 72, 1000, chunk, accumulate);
      CheckHead<Bf16>(150, 72, 1000, chunk, accumulate);
      CheckHead<float>(33, 128, 136, chunk, accumulate);
    }
  }
}

}  // namespace
}  // namespace switchyard::kernels
