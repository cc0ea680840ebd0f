// Every module against its twin, in fp64: outputs and gradients.
#include <ATen/ATen.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "worker/trainer/models/attention.h"
#include "worker/trainer/models/attention_twin.h"
#include "worker/trainer/models/block.h"
#include "worker/trainer/models/decoder.h"
#include "worker/trainer/models/decoder_twin.h"
#include "worker/trainer/models/mlp.h"
#include "worker/trainer/models/mlp_twin.h"
#include "worker/trainer/models/models_test_support.h"
#include "worker/trainer/models/moe_block.h"
#include "worker/trainer/models/moe_block_twin.h"
#include "worker/trainer/parallel/local_dispatcher.h"

namespace switchyard {
namespace {

constexpr double kTolerance = 1e-9;
// What a gradient buffer holds before it is overwritten.
constexpr double kGarbage = std::numeric_limits<double>::quiet_NaN();

at::Tensor Draw(at::IntArrayRef sizes, double size = 0.4) {
  return at::randn(sizes, at::kDouble) * size;
}

at::Tensor Leaf(const at::Tensor& value) { return value.clone().set_requires_grad(true); }

BatchContext Context(const ModelConfig& config, TokenDispatcher& dispatcher,
                     const DecoderBatch& batch) {
  const RopeFrequencies rope = ComputeRopeFrequencies(config.rope, config.head_dim);
  const ops::RopeTable table =
      ops::MakeRopeTable(rope.inverse_r, rope.attention_scale, 32, at::kDouble, at::kCPU);
  return {config,
          dispatcher,
          /*router_fp32=*/false,
          /*prob_sums=*/true,
          ops::MakeRopeAngles(table, batch.positions_T, at::kDouble),
          ops::MakeAttentionPlan(batch.cu_seqlens)};
}

AttentionParameters DrawAttention(const ModelConfig& c) {
  const int64_t p = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim;
  AttentionParameters w;
  w.qkv_weight_PH = Draw({p, c.hidden_size});
  w.q_norm_d = Draw({c.head_dim}) + 1;
  w.k_norm_d = Draw({c.head_dim}) + 1;
  w.o_weight_HQ = Draw({c.hidden_size, c.num_heads * c.head_dim});
  if (c.attention_bias) {
    w.qkv_bias_P = Draw({p});
    w.o_bias_H = Draw({c.hidden_size});
  }
  return w;
}

std::vector<at::Tensor*> All(AttentionParameters& w) {
  std::vector<at::Tensor*> out = {&w.qkv_weight_PH, &w.q_norm_d, &w.k_norm_d, &w.o_weight_HQ};
  if (w.qkv_bias_P.defined()) out.insert(out.end(), {&w.qkv_bias_P, &w.o_bias_H});
  return out;
}

struct AttentionCase {
  const char* name;
  std::function<void(ModelConfig&)> change;
  std::vector<int64_t> lengths;
};

class AttentionTwinTest : public testing::TestWithParam<AttentionCase> {};

TEST_P(AttentionTwinTest, HasTheSameOutputAndGradients) {
  ModelConfig c = ToyConfig();
  GetParam().change(c);
  at::manual_seed(3);
  const DecoderBatch batch = DrawBatch(5, GetParam().lengths, c.vocab_size);
  const int64_t tokens = batch.tokens_T.size(0);
  LocalDispatcher dispatcher(c.num_experts);
  const BatchContext context = Context(c, dispatcher, batch);
  AttentionParameters weights = DrawAttention(c);
  const at::Tensor x = Draw({tokens, c.hidden_size}, 1.0);
  const at::Tensor dy = Draw({tokens, c.hidden_size}, 1.0);

  AttentionSaved saved;
  const at::Tensor y = AttentionForward(context, 0, weights, x, &saved);
  AttentionParameters gradients = weights;
  for (at::Tensor* g : All(gradients)) *g = at::full_like(*g, kGarbage);
  const at::Tensor dx =
      AttentionBackward(context, 0, weights, dy, x, saved, gradients, /*accumulate=*/false);

  AttentionParameters twin = weights;
  for (at::Tensor* w : All(twin)) *w = Leaf(*w);
  const at::Tensor twin_x = Leaf(x);
  const at::Tensor twin_y = AttentionTwin(c, 0, twin, twin_x, batch.positions_T, batch.cu_seqlens);
  (twin_y * dy).sum().backward();
  EXPECT_LE(RelativeError(y, twin_y.detach()), kTolerance);
  EXPECT_LE(RelativeError(dx, twin_x.grad()), kTolerance);
  for (size_t i = 0; i < All(twin).size(); ++i) {
    EXPECT_LE(RelativeError(*All(gradients)[i], All(twin)[i]->grad()), kTolerance) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, AttentionTwinTest,
    testing::Values(AttentionCase{"OneDocument", [](ModelConfig&) {}, {13}},
                    AttentionCase{"EqualDocuments", [](ModelConfig&) {}, {7, 7, 7}},
                    AttentionCase{"RaggedDocuments", [](ModelConfig&) {}, {3, 11, 1, 0, 10, 9, 2}},
                    AttentionCase{"EqualHeads", [](ModelConfig& c) { c.num_kv_heads = 4; }, {6, 5}},
                    AttentionCase{"OneKvHead", [](ModelConfig& c) { c.num_kv_heads = 1; }, {6, 5}},
                    AttentionCase{"Bias", [](ModelConfig& c) { c.attention_bias = true; }, {6, 5}},
                    AttentionCase{
                        "Window", [](ModelConfig& c) { c.sliding_window = 3; }, {12, 2, 9, 3}},
                    AttentionCase{"WindowOnLaterLayers",
                                  [](ModelConfig& c) {
                                    c.sliding_window = 3;
                                    c.max_window_layers = 1;
                                  },
                                  {12, 2}},
                    AttentionCase{"Yarn",
                                  [](ModelConfig& c) {
                                    c.rope.type = RopeType::kYarn;
                                    c.rope.factor = 4;
                                    c.rope.original_max_position_embeddings = 16;
                                  },
                                  {20}}),
    [](const auto& info) { return info.param.name; });

TEST(MlpTwinTest, HasTheSameOutputAndGradients) {
  at::manual_seed(4);
  const MlpParameters weights = {Draw({2 * 18, 12}), Draw({12, 18})};
  const at::Tensor x = Draw({9, 12}, 1.0);
  const at::Tensor dy = Draw({9, 12}, 1.0);
  MlpSaved saved;
  const at::Tensor y = MlpForward(weights, x, &saved);
  const MlpParameters gradients = {at::full_like(weights.gate_up_2FH, kGarbage),
                                   at::full_like(weights.down_HF, kGarbage)};
  const at::Tensor dx = MlpBackward(weights, dy, x, saved, gradients, /*accumulate=*/false);

  const at::Tensor gate_up = Leaf(weights.gate_up_2FH);
  const at::Tensor down = Leaf(weights.down_HF);
  const at::Tensor twin_x = Leaf(x);
  const at::Tensor twin_y = MlpTwin(gate_up, down, twin_x);
  (twin_y * dy).sum().backward();
  EXPECT_LE(RelativeError(y, twin_y.detach()), kTolerance);
  EXPECT_LE(RelativeError(dx, twin_x.grad()), kTolerance);
  EXPECT_LE(RelativeError(gradients.gate_up_2FH, gate_up.grad()), kTolerance);
  EXPECT_LE(RelativeError(gradients.down_HF, down.grad()), kTolerance);
}

class MoeTwinTest : public testing::TestWithParam<bool> {};

TEST_P(MoeTwinTest, HasTheSameOutputAndGradients) {
  ModelConfig c = ToyConfig();
  c.norm_topk_prob = GetParam();
  at::manual_seed(6);
  const int64_t tokens = 17;
  const DecoderBatch batch = DrawBatch(5, {tokens}, c.vocab_size);
  LocalDispatcher dispatcher(c.num_experts);
  const BatchContext context = Context(c, dispatcher, batch);
  const at::Tensor router = Draw({c.num_experts, c.hidden_size}, 1.0);
  const ExpertParameters experts = {
      Draw({c.num_experts, 2 * c.moe_intermediate_size, c.hidden_size}),
      Draw({c.num_experts, c.hidden_size, c.moe_intermediate_size})};
  const at::Tensor x = Draw({tokens, c.hidden_size}, 1.0);
  const at::Tensor dy = Draw({tokens, c.hidden_size}, 1.0);
  const at::Tensor residual = Draw({tokens, c.hidden_size}, 1.0);
  const at::Tensor daux_E = Draw({c.num_experts}, 1.0);

  MoeSaved saved;
  RoutingSums sums;
  const at::Tensor y = MoeForward(context, router, experts, x, residual, &saved, &sums);
  MoeGradients d;
  d.router_EH = at::full_like(router, kGarbage);
  d.accumulate_router = false;
  d.experts = {at::ones_like(experts.gate_up_E2FH), at::ones_like(experts.down_EHF)};
  d.accumulate_experts = true;
  const at::Tensor dx = MoeBackward(context, router, experts, x, daux_E, &saved, d,
                                    dispatcher.BeginDispatch(*saved.plan, dy, {}));

  const at::Tensor twin_router = Leaf(router);
  const ExpertParameters twin = {Leaf(experts.gate_up_E2FH), Leaf(experts.down_EHF)};
  const at::Tensor twin_x = Leaf(x);
  const MoeTwinOutput out = MoeTwin(c, twin_router, twin, twin_x);
  ((out.y_TH * dy).sum() + (out.probs_TE * daux_E).sum()).backward();
  EXPECT_LE(RelativeError(y, out.y_TH.detach() + residual), kTolerance);
  EXPECT_LE(RelativeError(dx, twin_x.grad()), kTolerance);
  EXPECT_LE(RelativeError(d.router_EH, twin_router.grad()), kTolerance);
  EXPECT_LE(RelativeError(d.experts.gate_up_E2FH - 1, twin.gate_up_E2FH.grad()), kTolerance);
  EXPECT_LE(RelativeError(d.experts.down_EHF - 1, twin.down_EHF.grad()), kTolerance);
  EXPECT_TRUE(at::equal(at::diff(sums.offsets_E1).to(at::kLong),
                        out.chosen_TE.detach().sum(0).to(at::kLong)));
  EXPECT_LE(RelativeError(sums.prob_sums_E, out.probs_TE.detach().sum(0)), kTolerance);
}

INSTANTIATE_TEST_SUITE_P(NormTopkProb, MoeTwinTest, testing::Bool());

struct DecoderCase {
  const char* name;
  std::function<void(ModelConfig&)> change;
  AuxLoss aux_loss;
  ActivationMemory memory;
};

class DecoderTwinTest : public testing::TestWithParam<DecoderCase> {};

TEST_P(DecoderTwinTest, HasTheSameLossAndGradients) {
  ModelConfig c = ToyConfig();
  GetParam().change(c);
  LocalParameterStore store(BuildBuckets(c, 0, c.num_experts), at::kDouble);
  DrawWeights(8, &store);
  LocalDispatcher dispatcher(c.num_experts);
  DecoderOptions options;
  options.aux_loss = GetParam().aux_loss;
  options.activation_memory = GetParam().memory;
  options.loss_chunk_tokens = 4;
  Decoder decoder(c, options, store, dispatcher);
  const DecoderBatch batch = DrawBatch(9, {5, 1, 9, 4}, c.vocab_size);
  const double loss_scale = 0.37, aux_scale = 0.21;
  const at::Tensor logits = decoder.Logits(batch);
  const LossSums sums = decoder.ForwardBackward(batch, loss_scale, aux_scale);

  std::vector<at::Tensor> flats;
  for (size_t b = 0; b < store.buckets().size(); ++b) {
    flats.push_back(Leaf(store.Acquire(static_cast<int>(b))));
  }
  const DecoderTwinOutput twin = DecoderTwin(c, options.aux_loss, flats, batch);
  (loss_scale * twin.ce_sum + aux_scale * twin.aux).backward();
  EXPECT_LE(RelativeError(logits, twin.logits_TV.detach()), kTolerance);
  EXPECT_NEAR(Value(sums.ce_sum), Value(twin.ce_sum), kTolerance * Value(twin.ce_sum));
  EXPECT_NEAR(Value(sums.aux), aux_scale * Value(twin.aux), kTolerance);
  for (size_t b = 0; b < flats.size(); ++b) {
    EXPECT_LE(RelativeError(store.gradient(static_cast<int>(b)), flats[b].grad()), kTolerance)
        << store.buckets()[b].name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, DecoderTwinTest,
    testing::Values(
        DecoderCase{"Lean", [](ModelConfig&) {}, AuxLoss::kOff, ActivationMemory::kLean},
        DecoderCase{"FullRecompute", [](ModelConfig&) {}, AuxLoss::kHf,
                    ActivationMemory::kFullRecompute},
        DecoderCase{"HfAux", [](ModelConfig&) {}, AuxLoss::kHf, ActivationMemory::kLean},
        DecoderCase{"MegatronAux", [](ModelConfig&) {}, AuxLoss::kMegatron,
                    ActivationMemory::kLean},
        DecoderCase{"Tied", [](ModelConfig& c) { c.tie_word_embeddings = true; }, AuxLoss::kOff,
                    ActivationMemory::kLean},
        DecoderCase{"TiedWithPaddingRow",
                    [](ModelConfig& c) {
                      c.tie_word_embeddings = true;
                      c.pad_token_id = 3;
                    },
                    AuxLoss::kOff, ActivationMemory::kLean},
        DecoderCase{"DenseOnly",
                    [](ModelConfig& c) {
                      c.mlp_only_layers = {0, 1, 2};
                    },
                    AuxLoss::kOff, ActivationMemory::kFullRecompute}),
    [](const auto& info) { return info.param.name; });

// The objective along a random direction, by central differences: no autograd involved.
TEST(DecoderGradientTest, EqualsFiniteDifferences) {
  const ModelConfig c = ToyConfig();
  LocalParameterStore store(BuildBuckets(c, 0, c.num_experts), at::kDouble);
  DrawWeights(8, &store);
  LocalDispatcher dispatcher(c.num_experts);
  DecoderOptions options;
  options.aux_loss = AuxLoss::kMegatron;
  Decoder decoder(c, options, store, dispatcher);
  const DecoderBatch batch = DrawBatch(9, {5, 8}, c.vocab_size);
  const double loss_scale = 0.5, aux_scale = 2.0;
  const auto objective = [&] {
    const LossSums sums = decoder.Evaluate(batch);
    return loss_scale * Value(sums.ce_sum) + aux_scale * Value(sums.aux);
  };
  decoder.ForwardBackward(batch, loss_scale, aux_scale);
  at::manual_seed(12);
  for (size_t b = 0; b < store.buckets().size(); ++b) {
    at::Tensor flat = store.Acquire(static_cast<int>(b));
    const at::Tensor kept = flat.clone();
    const at::Tensor direction = Draw(flat.sizes(), 1.0);
    const double step = 1e-6;
    flat.copy_(kept + step * direction);
    const double above = objective();
    flat.copy_(kept - step * direction);
    const double below = objective();
    flat.copy_(kept);
    const double expected = (store.gradient(static_cast<int>(b)) * direction).sum().item<double>();
    EXPECT_NEAR((above - below) / (2 * step), expected, 1e-6 * (1 + std::abs(expected)))
        << store.buckets()[b].name;
    store.Release(static_cast<int>(b));
  }
}

}  // namespace
}  // namespace switchyard
