#include "worker/trainer/ops/attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/ops/attention_buckets.h"
#include "worker/trainer/ops/attention_composed.h"

namespace switchyard::ops {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::vector<int64_t> Ends(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> out = {0};
  for (int64_t length : lengths) out.push_back(out.back() + length);
  return out;
}

struct Inputs {
  at::Tensor q, k, v, dout;
};

Inputs Draw(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t d, at::ScalarType type) {
  at::manual_seed(1);
  const auto draw = [&](int64_t n) { return at::randn({tokens, n, d}, at::kDouble).to(type); };
  return {draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)};
}

// Token by token.
at::Tensor Naive(const Inputs& in, const std::vector<int64_t>& ends, double scale, int64_t window) {
  const at::Tensor q = in.q.to(at::kDouble), k = in.k.to(at::kDouble), v = in.v.to(at::kDouble);
  at::Tensor out = at::zeros_like(q);
  const int64_t repeats = q.size(1) / k.size(1);
  for (size_t document = 0; document + 1 < ends.size(); ++document) {
    for (int64_t i = ends[document]; i < ends[document + 1]; ++i) {
      const int64_t first = window == 0 ? ends[document] : std::max(ends[document], i - window + 1);
      for (int64_t h = 0; h < q.size(1); ++h) {
        const at::Tensor keys = k.slice(0, first, i + 1).select(1, h / repeats);
        const at::Tensor values = v.slice(0, first, i + 1).select(1, h / repeats);
        const at::Tensor p = at::softmax(at::mv(keys, q[i][h]) * scale, 0);
        out[i][h].copy_(at::mv(values.t(), p));
      }
    }
  }
  return out;
}

TEST(AttentionPlanTest, HoldsEveryTokenOnceInFullEnoughBatches) {
  const std::vector<int64_t> lengths = {3, 41, 0, 40, 17, 1, 38, 16, 2, 30, 5, 1};
  const AttentionPlan plan = MakeAttentionPlan(Ends(lengths));
  EXPECT_EQ(plan.num_tokens, 194);
  std::vector<int> seen(194, 0);
  for (const AttentionPlan::Batch& batch : plan.batches) {
    ASSERT_FALSE(batch.contiguous);
    EXPECT_EQ(batch.tokens.size(0), batch.slots.size(0));
    EXPECT_EQ(batch.token_of_slot.size(0), batch.documents * batch.length);
    EXPECT_GE(4 * batch.tokens.size(0), 3 * batch.documents * batch.length);
    for (int64_t i = 0; i < batch.tokens.size(0); ++i) {
      const int64_t token = batch.tokens[i].item<int64_t>();
      ++seen[token];
      EXPECT_EQ(batch.token_of_slot[batch.slots[i].item<int64_t>()].item<int64_t>(), token);
    }
  }
  for (int count : seen) EXPECT_EQ(count, 1);
}

TEST(AttentionPlanTest, EqualDocumentsNeedNoCopies) {
  const AttentionPlan plan = MakeAttentionPlan({0, 8, 16, 24});
  ASSERT_EQ(plan.batches.size(), 1u);
  EXPECT_TRUE(plan.batches[0].contiguous);
  EXPECT_EQ(plan.batches[0].documents, 3);
}

TEST(AttentionPlanTest, RefusesDescendingEnds) {
  EXPECT_THAT(
      [] {
        MakeAttentionPlan({0, 5, 4});
      },
      ThrowsMessage<c10::Error>(HasSubstr("not descend")));
  EXPECT_THAT(
      [] {
        MakeAttentionPlan({1, 5});
      },
      ThrowsMessage<c10::Error>(HasSubstr("start at 0")));
}

TEST(AttentionBucketsTest, AreFewAndNotMuchLarger) {
  EXPECT_EQ(AttentionDocumentsBucket(0), 16);
  EXPECT_EQ(AttentionDocumentsBucket(17), 32);
  EXPECT_EQ(AttentionLengthBucket(1), 128);
  EXPECT_EQ(AttentionLengthBucket(4096), 4096);
  EXPECT_EQ(AttentionLengthBucket(4097), 8192);
  EXPECT_EQ(AttentionTokensBucket(8100), 8192);
  int64_t last = 0, buckets = 0;
  for (int64_t tokens = 1; tokens <= 40000; ++tokens) {
    const int64_t bucket = AttentionTokensBucket(tokens);
    ASSERT_GE(bucket, tokens);
    ASSERT_GE(bucket, last);
    ASSERT_LE(8 * (bucket - tokens), tokens + 1024);
    buckets += bucket > last ? 1 : 0;
    last = bucket;
  }
  EXPECT_LT(buckets, 60);
}

struct Shape {
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, d, window;
};

class AttentionTest : public testing::TestWithParam<Shape> {};

TEST_P(AttentionTest, EqualsTheNaiveLoop) {
  const Shape& s = GetParam();
  const std::vector<int64_t> ends = Ends(s.lengths);
  const double scale = 0.3;
  for (auto [type, tolerance] :
       {std::pair(at::kDouble, 1e-12), {at::kFloat, 2e-6}, {at::kBFloat16, 2e-2}}) {
    const Inputs in = Draw(ends.back(), s.heads, s.kv_heads, s.d, type);
    const AttentionOutput out =
        AttentionForward(in.q, in.k, in.v, MakeAttentionPlan(ends), scale, s.window);
    EXPECT_EQ(out.out_TNd.scalar_type(), type);
    if (ends.back() == 0) continue;
    EXPECT_LE(
        (out.out_TNd.to(at::kDouble) - Naive(in, ends, scale, s.window)).abs().max().item<double>(),
        tolerance);
  }
}

TEST_P(AttentionTest, BackwardEqualsFiniteDifferences) {
  const Shape& s = GetParam();
  const std::vector<int64_t> ends = Ends(s.lengths);
  if (ends.back() == 0) return;
  const double scale = 0.3, step = 1e-6;
  const Inputs in = Draw(ends.back(), s.heads, s.kv_heads, s.d, at::kDouble);
  const AttentionPlan plan = MakeAttentionPlan(ends);
  const AttentionOutput out = AttentionForward(in.q, in.k, in.v, plan, scale, s.window);
  const AttentionGradients g =
      AttentionBackward(in.dout, in.q, in.k, in.v, out, plan, scale, s.window);
  const auto objective = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return (Naive({q, k, v, {}}, ends, scale, s.window) * in.dout).sum().item<double>();
  };
  const at::Tensor eq = at::randn_like(in.q), ek = at::randn_like(in.k), ev = at::randn_like(in.v);
  const auto slope = [&](double dq, double dk, double dv) {
    return (objective(in.q + step * dq * eq, in.k + step * dk * ek, in.v + step * dv * ev) -
            objective(in.q - step * dq * eq, in.k - step * dk * ek, in.v - step * dv * ev)) /
           (2 * step);
  };
  EXPECT_NEAR((g.dq_TNd * eq).sum().item<double>(), slope(1, 0, 0), 1e-6);
  EXPECT_NEAR((g.dk_TMd * ek).sum().item<double>(), slope(0, 1, 0), 1e-6);
  EXPECT_NEAR((g.dv_TMd * ev).sum().item<double>(), slope(0, 0, 1), 1e-6);
}

// The composition is what GPUs are tested against.
TEST_P(AttentionTest, EqualsTheComposition) {
  const Shape& s = GetParam();
  const std::vector<int64_t> ends = Ends(s.lengths);
  const Inputs in = Draw(ends.back(), s.heads, s.kv_heads, s.d, at::kDouble);
  const AttentionPlan plan = MakeAttentionPlan(ends);
  const AttentionOutput a = AttentionForward(in.q, in.k, in.v, plan, 0.3, s.window);
  const AttentionOutput b = ComposedAttentionForward(in.q, in.k, in.v, plan, 0.3, s.window);
  EXPECT_TRUE(at::allclose(a.out_TNd, b.out_TNd, 1e-11, 1e-12));
  EXPECT_TRUE(at::allclose(a.log_sum_exp_TN, b.log_sum_exp_TN, 1e-11, 1e-12));
  const AttentionGradients c = AttentionBackward(in.dout, in.q, in.k, in.v, a, plan, 0.3, s.window);
  const AttentionGradients d =
      ComposedAttentionBackward(in.dout, in.q, in.k, in.v, b, plan, 0.3, s.window);
  EXPECT_TRUE(at::allclose(c.dq_TNd, d.dq_TNd, 1e-10, 1e-12));
  EXPECT_TRUE(at::allclose(c.dk_TMd, d.dk_TMd, 1e-10, 1e-12));
  EXPECT_TRUE(at::allclose(c.dv_TMd, d.dv_TMd, 1e-10, 1e-12));
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest,
                         testing::Values(Shape{{}, 2, 2, 8, 0}, Shape{{1}, 2, 2, 8, 0},
                                         Shape{{7}, 4, 2, 6, 0}, Shape{{5, 5, 5}, 4, 1, 8, 0},
                                         Shape{{2, 19, 1, 0, 18, 17, 3}, 6, 2, 10, 0},
                                         Shape{{2, 19, 1, 18, 3}, 2, 1, 8, 4},
                                         Shape{{9}, 2, 2, 8, 1}, Shape{{70}, 2, 1, 16, 33}));

TEST(AttentionTest, GradientsGoWhereTheyAreWanted) {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{9, 9}, {3, 11, 4}}) {
    const AttentionPlan plan = MakeAttentionPlan(Ends(lengths));
    const Inputs in = Draw(18, 4, 2, 8, at::kFloat);
    const AttentionOutput out = AttentionForward(in.q, in.k, in.v, plan, 0.2, 0);
    const AttentionGradients want = AttentionBackward(in.dout, in.q, in.k, in.v, out, plan, 0.2, 0);
    const at::Tensor fused = at::full({18, 8, 8}, 7.0f);
    AttentionGradients into;
    into.dv_TMd = fused.narrow(1, 6, 2);
    const AttentionGradients got =
        AttentionBackward(in.dout, in.q, in.k, in.v, out, plan, 0.2, 0, into);
    EXPECT_TRUE(at::equal(fused.narrow(1, 6, 2), want.dv_TMd));
    EXPECT_TRUE(at::equal(fused.narrow(1, 0, 6), at::full({18, 6, 8}, 7.0f)));
    EXPECT_TRUE(at::equal(got.dq_TNd, want.dq_TNd));
    into.dv_TMd = fused.narrow(1, 5, 3);
    EXPECT_THAT([&] { AttentionBackward(in.dout, in.q, in.k, in.v, out, plan, 0.2, 0, into); },
                ThrowsMessage<c10::Error>(HasSubstr("a gradient")));
  }
}

TEST(AttentionTest, GivesTheSameBitsTwice) {
  const std::vector<int64_t> ends = Ends({33, 64, 5, 40, 41, 39, 61});
  const AttentionPlan plan = MakeAttentionPlan(ends);
  const Inputs in = Draw(ends.back(), 4, 2, 32, at::kFloat);
  const AttentionOutput a = AttentionForward(in.q, in.k, in.v, plan, 0.2, 0);
  const AttentionOutput b = AttentionForward(in.q, in.k, in.v, plan, 0.2, 0);
  EXPECT_TRUE(at::equal(a.out_TNd, b.out_TNd));
  EXPECT_TRUE(at::equal(a.log_sum_exp_TN, b.log_sum_exp_TN));
  const AttentionGradients c = AttentionBackward(in.dout, in.q, in.k, in.v, a, plan, 0.2, 0);
  const AttentionGradients d = AttentionBackward(in.dout, in.q, in.k, in.v, b, plan, 0.2, 0);
  EXPECT_TRUE(at::equal(c.dq_TNd, d.dq_TNd));
  EXPECT_TRUE(at::equal(c.dk_TMd, d.dk_TMd));
  EXPECT_TRUE(at::equal(c.dv_TMd, d.dv_TMd));
}

}  // namespace
}  // namespace switchyard::ops
