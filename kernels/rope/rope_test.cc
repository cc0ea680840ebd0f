#include "kernels/rope/rope.h"

#include <gtest/gtest.h>

#include "kernels/common/testing.h"
#include "kernels/rope/rope_ref.h"

namespace switchyard::kernels {
namespace {

constexpr int kPositions = 300;

struct Shape {
  int64_t tokens;
  int q_heads, k_heads, head_dim;
};
const Shape kShapes[] = {
    {0, 4, 2, 128}, {1, 1, 1, 64}, {9, 32, 4, 128}, {257, 5, 3, 64}, {1031, 8, 1, 128}};

struct Data {
  Data(const Shape& s, Random& random)
      : stride((s.q_heads + 2 * s.k_heads) * s.head_dim),
        qkv(NormalBf16(s.tokens * stride, 2.f, random)),
        q_weight(NormalBf16(s.head_dim, 1.f, random)),
        k_weight(NormalBf16(s.head_dim, 1.f, random)),
        cos(kPositions * s.head_dim / 2),
        sin(cos.size()),
        positions(s.tokens) {
    for (size_t i = 0; i < cos.size(); ++i) {
      const float angle = 0.37f * i;
      cos[i] = RoundBf16(std::cos(angle));
      sin[i] = RoundBf16(std::sin(angle));
    }
    for (int64_t t = 0; t < s.tokens; ++t) positions[t] = static_cast<int32_t>(t % kPositions);
  }
  int64_t stride;
  std::vector<Bf16> qkv, q_weight, k_weight;
  std::vector<float> cos, sin;
  std::vector<int32_t> positions;
};

class RopeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(RopeTest, ForwardMatchesTheLoops) {
  for (const Shape& s : kShapes) {
    for (const bool norm : {false, true}) {
      Random random(61);
      const Data d(s, random);
      const int64_t k_at = s.q_heads * s.head_dim;
      std::vector<Bf16> q(s.tokens * s.q_heads * s.head_dim), k(s.tokens * s.k_heads * s.head_dim);
      RopeParams p{d.qkv.data(),
                   d.qkv.data() + k_at,
                   norm ? d.q_weight.data() : nullptr,
                   norm ? d.k_weight.data() : nullptr,
                   d.cos.data(),
                   d.sin.data(),
                   d.positions.data(),
                   q.data(),
                   k.data(),
                   s.tokens,
                   d.stride,
                   d.stride,
                   s.q_heads,
                   s.k_heads,
                   s.head_dim,
                   1e-6f};
      RopeRef(p);
      DeviceArray<Bf16> qkv(d.qkv), qw(d.q_weight), kw(d.k_weight), dq(q.size()), dk(k.size());
      DeviceArray<float> cos(d.cos), sin(d.sin);
      DeviceArray<int32_t> positions(d.positions);
      p = {qkv.get(),
           qkv.get() + k_at,
           norm ? qw.get() : nullptr,
           norm ? kw.get() : nullptr,
           cos.get(),
           sin.get(),
           positions.get(),
           dq.get(),
           dk.get(),
           s.tokens,
           d.stride,
           d.stride,
           s.q_heads,
           s.k_heads,
           s.head_dim,
           1e-6f};
      ASSERT_EQ(Rope(p, nullptr), cudaSuccess);
      // n may round the other way twice (two bf16 ulps of values up to 16), and the halves may
      // cancel.
      EXPECT_EQ(Difference(dq.Download(), q, norm ? 0.1f : 1e-6f, 1.f / 128), "") << s.tokens;
      EXPECT_EQ(Difference(dk.Download(), k, norm ? 0.1f : 1e-6f, 1.f / 128), "") << s.tokens;
    }
  }
}

TEST_F(RopeTest, GradientMatchesTheLoops) {
  for (const Shape& s : kShapes) {
    for (const bool norm : {false, true}) {
      Random random(62);
      const Data d(s, random);
      const int64_t k_at = s.q_heads * s.head_dim;
      const std::vector<Bf16> dq_out = NormalBf16(s.tokens * s.q_heads * s.head_dim, 1.f, random);
      const std::vector<Bf16> dk_out = NormalBf16(s.tokens * s.k_heads * s.head_dim, 1.f, random);
      std::vector<float> qw_grad = NormalFloats(s.head_dim, 1.f, random), kw_grad = qw_grad;
      DeviceArray<float> dqw(qw_grad), dkw(kw_grad),
          workspace(size_t{kRopeGradBlocks} * 2 * s.head_dim);
      std::vector<Bf16> want = d.qkv;  // v's slice stays as it is
      RopeGradParams p{d.qkv.data(),
                       d.qkv.data() + k_at,
                       norm ? d.q_weight.data() : nullptr,
                       norm ? d.k_weight.data() : nullptr,
                       d.cos.data(),
                       d.sin.data(),
                       d.positions.data(),
                       dq_out.data(),
                       dk_out.data(),
                       want.data(),
                       want.data() + k_at,
                       qw_grad.data(),
                       kw_grad.data(),
                       nullptr,
                       s.tokens,
                       d.stride,
                       d.stride,
                       s.q_heads,
                       s.k_heads,
                       s.head_dim,
                       1e-6f,
                       true};
      RopeGradRef(p);
      DeviceArray<Bf16> qkv(d.qkv), qw(d.q_weight), kw(d.k_weight), ddq(dq_out), ddk(dk_out);
      DeviceArray<float> cos(d.cos), sin(d.sin);
      DeviceArray<int32_t> positions(d.positions);
      // In place: the gradients replace q and k.
      p = {qkv.get(),
           qkv.get() + k_at,
           norm ? qw.get() : nullptr,
           norm ? kw.get() : nullptr,
           cos.get(),
           sin.get(),
           positions.get(),
           ddq.get(),
           ddk.get(),
           qkv.get(),
           qkv.get() + k_at,
           dqw.get(),
           dkw.get(),
           workspace.get(),
           s.tokens,
           d.stride,
           d.stride,
           s.q_heads,
           s.k_heads,
           s.head_dim,
           1e-6f,
           true};
      ASSERT_EQ(RopeGrad(p, nullptr), cudaSuccess);
      EXPECT_EQ(Difference(qkv.Download(), want, 2e-3f, 1.f / 128), "") << s.tokens << norm;
      EXPECT_EQ(Difference(dqw.Download(), qw_grad, 5e-3f, 1e-3f), "") << s.tokens << norm;
      EXPECT_EQ(Difference(dkw.Download(), kw_grad, 5e-3f, 1e-3f), "") << s.tokens << norm;
    }
  }
}

}  // namespace
}  // namespace switchyard::kernels
