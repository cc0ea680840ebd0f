#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/ops/cross_entropy.h"
#include "worker/trainer/ops/embedding.h"
#include "worker/trainer/ops/experts.h"
#include "worker/trainer/ops/permute.h"
#include "worker/trainer/ops/rms_norm.h"
#include "worker/trainer/ops/rope.h"
#include "worker/trainer/ops/router.h"
#include "worker/trainer/ops/swiglu.h"

namespace switchyard::ops {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

double Error(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

at::Tensor Ids(const std::vector<int64_t>& values) { return at::tensor(values, at::kLong); }

at::Tensor Draw(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); }

// The derivative of f at x along `direction`.
template <typename F>
double Slope(F f, const at::Tensor& x, const at::Tensor& direction) {
  constexpr double kStep = 1e-6;
  return (f(x + kStep * direction) - f(x - kStep * direction)) / (2 * kStep);
}

TEST(RmsNormTest, RoundsTwiceInHalfPrecision) {
  at::manual_seed(1);
  const at::Tensor x = Draw({50, 33}).to(at::kBFloat16);
  const at::Tensor w = (Draw({33}) + 1).to(at::kBFloat16);
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor normed = (wide * at::rsqrt(wide.pow(2).mean(-1, true) + 1e-6)).to(at::kBFloat16);
  EXPECT_TRUE(at::equal(RmsNormForward(x, w, 1e-6).y_RD, normed * w));
  const at::Tensor residual = Draw({50, 33}).to(at::kBFloat16);
  const at::Tensor sum = x.clone();
  const at::Tensor y = AddRmsNormForward(sum, residual, w, 1e-6).y_RD;
  EXPECT_TRUE(at::equal(sum, x + residual));
  EXPECT_TRUE(at::equal(y, RmsNormForward(sum, w, 1e-6).y_RD));
}

TEST(RmsNormTest, BackwardEqualsFiniteDifferences) {
  at::manual_seed(2);
  const at::Tensor x = Draw({4, 3, 7}), w = Draw({7}), dy = Draw({4, 3, 7});
  at::Tensor dw = at::ones({7}, at::kDouble);  // added to, not overwritten
  const at::Tensor passed = Draw(x.sizes());
  const at::Tensor dx = RmsNormBackward(dy, x, {}, w, 1e-2, passed, dw, true) - passed;
  const at::Tensor ex = Draw(x.sizes()), ew = Draw(w.sizes());
  const auto of_x = [&](const at::Tensor& v) {
    return (RmsNormForward(v, w, 1e-2).y_RD * dy).sum().item<double>();
  };
  const auto of_w = [&](const at::Tensor& v) {
    return (RmsNormForward(x, v, 1e-2).y_RD * dy).sum().item<double>();
  };
  EXPECT_NEAR((dx * ex).sum().item<double>(), Slope(of_x, x, ex), 1e-6);
  EXPECT_NEAR(((dw - 1) * ew).sum().item<double>(), Slope(of_w, w, ew), 1e-6);
}

TEST(RopeTest, RotatesPairsByTheirAngleAndBack) {
  at::manual_seed(3);
  const at::Tensor frequencies = at::tensor({1.0, 0.1}, at::kFloat);
  const RopeTable table = MakeRopeTable(frequencies, 1.0, 6, at::kDouble, at::kCPU);
  const RopeAngles angles = MakeRopeAngles(table, Ids({0, 5}), at::kDouble);
  const at::Tensor x = Draw({2, 3, 4});
  const at::Tensor y = RopeForward(x, angles);
  EXPECT_TRUE(at::equal(y[0], x[0]));
  const double c = std::cos(0.5), s = std::sin(0.5);  // token 1, pair (1, 3)
  EXPECT_NEAR(y[1][2][1].item<double>(),
              x[1][2][1].item<double>() * c - x[1][2][3].item<double>() * s, 1e-6);
  EXPECT_NEAR(y[1][2][3].item<double>(),
              x[1][2][3].item<double>() * c + x[1][2][1].item<double>() * s, 1e-6);
  EXPECT_LE(Error(RopeBackward(y, angles), x), 1e-6);  // a rotation's transpose is its inverse
}

TEST(SwigluTest, BackwardEqualsFiniteDifferences) {
  at::manual_seed(4);
  const at::Tensor z = Draw({6, 10}), scale = Draw({6}), dy = Draw({6, 5});
  const SwigluGradients g = SwigluBackward(dy, z, scale);
  const at::Tensor ez = Draw(z.sizes()), es = Draw(scale.sizes());
  const auto of_z = [&](const at::Tensor& v) {
    return (SwigluForward(v, scale) * dy).sum().item<double>();
  };
  const auto of_scale = [&](const at::Tensor& v) {
    return (SwigluForward(z, v) * dy).sum().item<double>();
  };
  EXPECT_NEAR((g.dz_R2F * ez).sum().item<double>(), Slope(of_z, z, ez), 1e-6);
  EXPECT_NEAR((g.dscale_R * es).sum().item<double>(), Slope(of_scale, scale, es), 1e-6);
  EXPECT_FALSE(SwigluBackward(dy, z, {}).dscale_R.defined());
}

TEST(SwigluTest, EqualsItsFormula) {
  at::manual_seed(5);
  for (int64_t rows : {0, 1, 7}) {
    for (int64_t f : {1, 5, 16, 37}) {
      const at::Tensor z = (Draw({rows, 2 * f}) * 4).to(at::kFloat);
      const at::Tensor scale = Draw({rows}).to(at::kFloat);
      const at::Tensor gate = z.narrow(1, 0, f).to(at::kDouble);
      const at::Tensor up = z.narrow(1, f, f).to(at::kDouble);
      const at::Tensor want = gate * at::sigmoid(gate) * up * scale.to(at::kDouble).unsqueeze(1);
      const at::Tensor got = SwigluForward(z, scale);
      ASSERT_EQ(got.sizes(), want.sizes());
      if (rows == 0) continue;
      EXPECT_LE(Error(got, want), 1e-5);
    }
  }
}

TEST(EmbeddingTest, AddsRepeatedTokensAndSkipsThePaddingRow) {
  const at::Tensor dx = at::tensor({1.0, 2.0, 4.0, 8.0}, at::kFloat).unsqueeze(1);
  at::Tensor dw = at::ones({4, 1});
  EmbeddingBackward(dx, Ids({2, 0, 2, 1}), /*padding_row=*/1, dw, /*accumulate=*/true);
  EXPECT_TRUE(at::equal(dw.squeeze(1), at::tensor({3.0, 1.0, 6.0, 1.0}, at::kFloat)));
  EmbeddingBackward(dx, Ids({2, 0, 2, 1}), /*padding_row=*/1, dw, /*accumulate=*/false);
  EXPECT_TRUE(at::equal(dw.squeeze(1), at::tensor({2.0, 0.0, 5.0, 0.0}, at::kFloat)));
}

TEST(PermuteTest, GroupsByExpertThenTokenThenK) {
  const at::Tensor ids = at::tensor(std::vector<int64_t>{2, 0, 0, 2, 1, 2}, at::kLong).view({3, 2});
  const Permutation p = MakePermutation(ids, 4);
  EXPECT_THAT(RowsPerExpert(p.offsets_E1), ElementsAre(2, 1, 3, 0));
  EXPECT_TRUE(at::equal(p.row_of_TK, Ids({3, 0, 1, 4, 2, 5}).to(at::kInt)));
  const at::Tensor x = at::tensor({10.0, 20.0, 30.0}, at::kFloat).unsqueeze(1);
  const at::Tensor s = at::tensor({0., 1., 2., 3., 4., 5.}, at::kFloat).view({3, 2});
  const PermutedRows out = PermuteRows(x, s, p);
  const at::Tensor& rows = out.rows_NH;
  EXPECT_TRUE(at::equal(rows.squeeze(1), at::tensor({10., 20., 30., 10., 20., 30.}, at::kFloat)));
  EXPECT_TRUE(at::equal(out.scalars_N, at::tensor({1., 2., 4., 0., 3., 5.}, at::kFloat)));
  EXPECT_TRUE(at::equal(UnpermuteSum(rows, {}, p), 2 * x));
  at::Tensor back;
  EXPECT_TRUE(at::equal(
      UnpermuteSum(rows, x, p, at::stack({out.scalars_N, 2 * out.scalars_N}), &back), 3 * x));
  EXPECT_TRUE(at::equal(back, 3 * s));
}

TEST(PermuteTest, SumsInSinglePrecisionAndRoundsOnce) {
  const at::Tensor ids = at::tensor(std::vector<int64_t>{0, 1, 2}, at::kLong).view({1, 3});
  const Permutation p = MakePermutation(ids, 3);
  // In bf16 steps 256 + 1 is 256 and so is the sum; in fp32 it is 258, which bf16 can hold.
  const at::Tensor rows = at::tensor({256.0, 1.0, 1.0}, at::kFloat).to(at::kBFloat16).unsqueeze(1);
  EXPECT_EQ(UnpermuteSum(rows, {}, p).item<double>(), 258.0);
}

TEST(PermuteTest, CopiesMayHaveNoRow) {
  RowMap map;
  map.num_tokens = 3;
  map.top_k = 2;
  map.num_rows = 3;
  map.row_of_TK = Ids({-1, 2, -1, -1, 0, 1}).to(at::kInt);
  const at::Tensor x = at::tensor({10.0, 20.0, 30.0}, at::kFloat).unsqueeze(1);
  const at::Tensor s = at::tensor({0., 1., 2., 3., 4., 5.}, at::kFloat).view({3, 2});
  const PermutedRows out = PermuteRows(x, s, map);
  EXPECT_TRUE(at::equal(out.rows_NH.squeeze(1), at::tensor({30., 30., 10.}, at::kFloat)));
  EXPECT_TRUE(at::equal(out.scalars_N, at::tensor({4., 5., 1.}, at::kFloat)));
  at::Tensor back;
  EXPECT_TRUE(at::equal(UnpermuteSum(out.rows_NH, x, map, out.scalars_N.unsqueeze(0), &back),
                        at::tensor({20., 20., 90.}, at::kFloat).unsqueeze(1)));
  EXPECT_TRUE(at::equal(back, at::tensor({0., 1., 0., 0., 4., 5.}, at::kFloat).view({3, 2})));
}

TEST(PermuteTest, NoTokens) {
  const Permutation p = MakePermutation(at::empty({0, 2}, at::kLong), 3);
  EXPECT_THAT(RowsPerExpert(p.offsets_E1), ElementsAre(0, 0, 0));
  EXPECT_THAT(PermuteRows(at::empty({0, 5}), {}, p).rows_NH.sizes(), ElementsAre(0, 5));
  EXPECT_THAT(UnpermuteSum(at::empty({0, 5}), {}, p).sizes(), ElementsAre(0, 5));
}

TEST(PermuteTest, RefusesUnknownExperts) {
  EXPECT_THAT(
      [] {
        MakePermutation(at::full({1, 1}, 3, at::kLong), 3);
      },
      ThrowsMessage<c10::Error>(HasSubstr("expert 3 of 3")));
}

RouterOptions TopK(int64_t top_k, bool normalize, at::ScalarType type = at::kDouble) {
  RouterOptions options;
  options.top_k = top_k;
  options.normalize = normalize;
  options.weights_type = type;
  options.prob_sums = true;
  return options;
}

TEST(RouterTest, ChoosesTheMostProbableAndLaysThemOut) {
  at::manual_seed(8);
  const at::Tensor logits = Draw({9, 6});
  const at::Tensor probs = at::softmax(logits, 1);
  const auto [best, ids] = at::topk(probs, 3, 1);
  for (bool normalize : {false, true}) {
    const RouterChoice chosen = RouterForward(logits, TopK(3, normalize));
    EXPECT_TRUE(at::equal(chosen.ids_TK, ids.to(at::kInt)));
    EXPECT_LE(Error(chosen.weights_TK, normalize ? best / best.sum(1, true) : best), 1e-15);
    EXPECT_LE(Error(chosen.prob_sums_E, probs.sum(0)), 1e-12);
    const Permutation want = MakePermutation(ids, 6);
    EXPECT_TRUE(at::equal(chosen.by_expert.row_of_TK, want.row_of_TK));
    EXPECT_TRUE(at::equal(chosen.by_expert.offsets_E1, want.offsets_E1));
  }
}

TEST(RouterTest, WeightsAreRoundedToTheActivations) {
  at::manual_seed(8);
  const at::Tensor logits = Draw({9, 6}).to(at::kFloat);
  const RouterChoice wide = RouterForward(logits, TopK(3, true, at::kFloat));
  const RouterChoice rounded = RouterForward(logits, TopK(3, true, at::kBFloat16));
  EXPECT_EQ(rounded.weights_TK.scalar_type(), at::kFloat);
  EXPECT_FALSE(at::equal(rounded.weights_TK, wide.weights_TK));
  EXPECT_TRUE(at::equal(rounded.weights_TK, wide.weights_TK.to(at::kBFloat16).to(at::kFloat)));
}

TEST(RouterTest, BackwardEqualsFiniteDifferences) {
  at::manual_seed(9);
  const at::Tensor logits = Draw({7, 5}), dweights = Draw({7, 2}), daux = Draw({5});
  for (bool normalize : {false, true}) {
    const RouterChoice chosen = RouterForward(logits, TopK(2, normalize));
    const at::Tensor ids = chosen.ids_TK.to(at::kLong);
    const auto objective = [&](const at::Tensor& v) {  // with the choice as it was
      const at::Tensor probs = at::softmax(v, 1);
      at::Tensor weights = probs.gather(1, ids);
      if (normalize) weights = weights / weights.sum(1, true);
      return ((weights * dweights).sum() + (probs * daux).sum()).item<double>();
    };
    const at::Tensor e = Draw(logits.sizes());
    const at::Tensor got = RouterBackward(chosen, dweights, normalize, daux);
    EXPECT_NEAR((got * e).sum().item<double>(), Slope(objective, logits, e), 1e-6);
  }
}

TEST(AuxLossTest, HasItsStatedValueAtBalance) {
  // 3 layers, 4 experts, 8 tokens, top 2: each expert gets 4 copies and probability 1/4.
  const at::Tensor counts = at::full({3, 4}, 4, at::kLong);
  const at::Tensor sums = at::full({3, 4}, 2.0, at::kDouble);
  EXPECT_NEAR(HfAuxLoss(counts, sums, 8).value.item<double>(), 2.0, 1e-12);
  EXPECT_NEAR(MegatronAuxLoss(counts, sums, 8, 2).value.item<double>(), 3.0, 1e-12);
}

TEST(AuxLossTest, GradientEqualsFiniteDifferences) {
  at::manual_seed(10);
  const at::Tensor counts = at::randint(0, 9, {3, 4}, at::kLong);
  const at::Tensor sums = at::rand({3, 4}, at::kDouble), e = Draw({3, 4});
  const auto hf = [&](const at::Tensor& v) { return HfAuxLoss(counts, v, 8).value.item<double>(); };
  const auto megatron = [&](const at::Tensor& v) {
    return MegatronAuxLoss(counts, v, 8, 2).value.item<double>();
  };
  EXPECT_NEAR((HfAuxLoss(counts, sums, 8).dprob_LE * e).sum().item<double>(), Slope(hf, sums, e),
              1e-8);
  EXPECT_NEAR((MegatronAuxLoss(counts, sums, 8, 2).dprob_LE * e).sum().item<double>(),
              Slope(megatron, sums, e), 1e-8);
}

// Rows with a target of at least 0.
Targets Supervised(const at::Tensor& targets) {
  Targets out;
  out.rows_S = targets.ge(0).nonzero().squeeze(1);
  out.ids_S = targets.index_select(0, out.rows_S);
  if (out.rows_S.numel() == targets.numel()) out.rows_S.reset();
  return out;
}

TEST(CrossEntropyTest, DoesNotDependOnTheChunks) {
  at::manual_seed(11);
  const at::Tensor hidden = Draw({11, 5}), weight = Draw({13, 5});
  const at::Tensor some = at::randint(0, 13, {11}, at::kLong);
  at::Tensor all = some.clone();
  some[0] = -100;
  some[7] = -100;
  for (const at::Tensor& ids : {some, all}) {
    const Targets targets = Supervised(ids);
    const at::Tensor log_probs = at::log_softmax(at::mm(hidden, weight.t()), 1);
    const double want = -log_probs.gather(1, ids.clamp_min(0).unsqueeze(1))
                             .squeeze(1)
                             .masked_fill(ids.lt(0), 0)
                             .sum()
                             .item<double>();
    at::Tensor first;
    for (int64_t chunk : {1, 4, 9, 100}) {
      CrossEntropyGradients d;
      d.scale = 0.5;
      d.dhidden_TH = at::full({11, 5}, 9.0, at::kDouble);
      d.dweight_VH = at::full({13, 5}, 9.0, at::kDouble);
      d.accumulate = false;
      EXPECT_NEAR(LinearCrossEntropy(hidden, weight, targets, chunk, &d).item<double>(), want,
                  1e-10);
      EXPECT_NEAR(LinearCrossEntropy(hidden, weight, targets, chunk, nullptr).item<double>(), want,
                  1e-10);
      EXPECT_EQ(d.dhidden_TH[7].abs().max().item<double>() == 0, targets.rows_S.defined());
      if (!first.defined()) first = d.dweight_VH;
      EXPECT_LE(Error(d.dweight_VH, first), 1e-12);
    }
  }
}

TEST(CrossEntropyTest, GradientEqualsFiniteDifferences) {
  at::manual_seed(12);
  const at::Tensor hidden = Draw({6, 5}), weight = Draw({13, 5});
  const Targets targets = Supervised(Ids({3, -100, 0, 12, 3, -100}));
  CrossEntropyGradients d;
  d.scale = 0.7;
  d.dhidden_TH = at::empty_like(hidden);
  d.dweight_VH = at::ones_like(weight);  // added to
  LinearCrossEntropy(hidden, weight, targets, 3, &d);
  const at::Tensor eh = Draw(hidden.sizes()), ew = Draw(weight.sizes());
  const auto of_hidden = [&](const at::Tensor& v) {
    return 0.7 * LinearCrossEntropy(v, weight, targets, 3, nullptr).item<double>();
  };
  const auto of_weight = [&](const at::Tensor& v) {
    return 0.7 * LinearCrossEntropy(hidden, v, targets, 3, nullptr).item<double>();
  };
  EXPECT_NEAR((d.dhidden_TH * eh).sum().item<double>(), Slope(of_hidden, hidden, eh), 1e-6);
  EXPECT_NEAR(((d.dweight_VH - 1) * ew).sum().item<double>(), Slope(of_weight, weight, ew), 1e-6);
}

TEST(CrossEntropyTest, WithoutTargetsNothingHappens) {
  const at::Tensor hidden = at::ones({3, 2}), weight = at::ones({4, 2});
  const Targets targets = Supervised(at::full({3}, -100, at::kLong));
  for (bool accumulate : {true, false}) {
    CrossEntropyGradients d;
    d.dhidden_TH = at::ones({3, 2});
    d.dweight_VH = at::ones({4, 2});
    d.accumulate = accumulate;
    EXPECT_EQ(LinearCrossEntropy(hidden, weight, targets, 2, &d).item<double>(), 0);
    EXPECT_EQ(d.dhidden_TH.abs().max().item<double>(), 0);
    EXPECT_EQ(d.dweight_VH.sum().item<double>(), accumulate ? 8 : 0);
  }
}

}  // namespace
}  // namespace switchyard::ops
