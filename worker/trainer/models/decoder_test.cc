#include "worker/trainer/models/decoder.h"

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/models/models_test_support.h"
#include "worker/trainer/parallel/local_dispatcher.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// Writes down every call that communicates on several ranks.
class RecordingDispatcher final : public TokenDispatcher {
 public:
  RecordingDispatcher(int64_t num_experts, std::vector<std::string>* calls)
      : local_(num_experts), calls_(calls) {}
  int64_t num_local_experts() const override { return local_.num_local_experts(); }
  std::unique_ptr<DispatchPlan> Plan(const ops::Permutation& by_expert) override {
    calls_->push_back("plan");
    return local_.Plan(by_expert);
  }
  std::unique_ptr<PendingDispatch> BeginDispatch(const DispatchPlan& plan, const at::Tensor& x_TH,
                                                 const at::Tensor& weights_TK) override {
    calls_->push_back(weights_TK.defined() ? "begin dispatch with weights" : "begin dispatch");
    return local_.BeginDispatch(plan, x_TH, weights_TK);
  }
  DispatchedRows FinishDispatch(std::unique_ptr<PendingDispatch> pending) override {
    calls_->push_back("finish dispatch");
    return local_.FinishDispatch(std::move(pending));
  }
  std::unique_ptr<PendingCombine> BeginCombine(const DispatchPlan& plan, const at::Tensor& rows_NH,
                                               const at::Tensor& dweights_PN) override {
    calls_->push_back(dweights_PN.defined() ? "begin combine of gradients" : "begin combine");
    return local_.BeginCombine(plan, rows_NH, dweights_PN);
  }
  CombinedRows FinishCombine(std::unique_ptr<PendingCombine> pending,
                             const at::Tensor& residual_TH) override {
    calls_->push_back("finish combine");
    return local_.FinishCombine(std::move(pending), residual_TH);
  }

 private:
  LocalDispatcher local_;
  std::vector<std::string>* calls_;
};

class RecordingStore final : public ParameterStore {
 public:
  RecordingStore(LocalParameterStore& store, std::vector<std::string>* calls)
      : store_(store), calls_(calls) {}
  at::Tensor Acquire(int bucket) override {
    calls_->push_back(absl::StrCat("acquire ", bucket));
    return store_.Acquire(bucket);
  }
  void Release(int bucket) override {
    calls_->push_back(absl::StrCat("release ", bucket));
    store_.Release(bucket);
  }
  void Prefetch(int bucket) override { calls_->push_back(absl::StrCat("prefetch ", bucket)); }
  GradientBuffer Gradient(int bucket) override { return store_.Gradient(bucket); }
  void GradientDone(int bucket) override {
    calls_->push_back(absl::StrCat("done ", bucket));
    store_.GradientDone(bucket);
  }

 private:
  LocalParameterStore& store_;
  std::vector<std::string>* calls_;
};

// A toy model with its parts.
struct Toy {
  explicit Toy(const DecoderOptions& options = {}, at::ScalarType type = at::kFloat,
               ModelConfig config = ToyConfig())
      : config(config),
        store(BuildBuckets(config, 0, config.num_experts), type),
        dispatcher(config.num_experts),
        decoder(config, options, store, dispatcher) {
    DrawWeights(8, &store);
  }
  ModelConfig config;
  LocalParameterStore store;
  LocalDispatcher dispatcher;
  Decoder decoder;
};

DecoderOptions FullRecompute() {
  DecoderOptions options;
  options.activation_memory = ActivationMemory::kFullRecompute;
  return options;
}

TEST(DecoderTest, FinishesEveryBucketOnceAndReleasesAll) {
  for (const DecoderOptions& options : {DecoderOptions(), FullRecompute()}) {
    Toy toy(options);
    toy.decoder.ForwardBackward(DrawBatch(1, {4, 7}, toy.config.vocab_size), 1.0, 0.0);
    for (size_t b = 0; b < toy.store.buckets().size(); ++b) {
      EXPECT_EQ(toy.store.num_done(static_cast<int>(b)), 1) << toy.store.buckets()[b].name;
    }
    EXPECT_EQ(toy.store.num_held(), 0);
  }
}

TEST(DecoderTest, AnEmptyMicrobatchAddsNothing) {
  for (AuxLoss aux : {AuxLoss::kOff, AuxLoss::kHf, AuxLoss::kMegatron}) {
    for (DecoderOptions options : {DecoderOptions(), FullRecompute()}) {
      options.aux_loss = aux;
      Toy toy(options);
      const LossSums sums =
          toy.decoder.ForwardBackward(DrawBatch(1, {}, toy.config.vocab_size), 1.0, 1.0);
      EXPECT_EQ(Value(sums.ce_sum), 0);
      EXPECT_EQ(sums.supervised, 0);
      EXPECT_EQ(Value(sums.aux), 0);
      EXPECT_EQ(sums.token_copies_LE.sum().item<int64_t>(), 0);
      for (const at::Tensor& gradient : Gradients(toy.store)) {
        EXPECT_EQ(gradient.abs().max().item<double>(), 0);
      }
      EXPECT_EQ(Value(toy.decoder.Evaluate(DrawBatch(1, {}, toy.config.vocab_size)).ce_sum), 0);
    }
  }
}

TEST(DecoderTest, CallsWhatCommunicatesInTheSameOrderWithoutTokens) {
  for (const DecoderOptions& options : {DecoderOptions(), FullRecompute()}) {
    const ModelConfig config = ToyConfig();
    LocalParameterStore local(BuildBuckets(config, 0, config.num_experts), at::kFloat);
    DrawWeights(8, &local);
    std::vector<std::string> calls;
    RecordingStore store(local, &calls);
    RecordingDispatcher dispatcher(config.num_experts, &calls);
    Decoder decoder(config, options, store, dispatcher);
    decoder.ForwardBackward(DrawBatch(1, {4, 7}, config.vocab_size), 1.0, 0.0);
    const std::vector<std::string> full = calls;
    calls.clear();
    decoder.ForwardBackward(DrawBatch(1, {}, config.vocab_size), 1.0, 0.0);
    EXPECT_EQ(calls, full);
    EXPECT_GT(full.size(), 30u);
  }
}

// What communicates in the backward, from the head's end on.
std::vector<std::string> BackwardCalls(const DecoderOptions& options) {
  const ModelConfig config = ToyConfig();  // layers: MoE, dense MLP, MoE
  LocalParameterStore local(BuildBuckets(config, 0, config.num_experts), at::kFloat);
  DrawWeights(8, &local);
  std::vector<std::string> calls;
  RecordingStore store(local, &calls);
  RecordingDispatcher dispatcher(config.num_experts, &calls);
  Decoder decoder(config, options, store, dispatcher);
  decoder.ForwardBackward(DrawBatch(1, {4, 7}, config.vocab_size), 1.0, 0.0);
  std::vector<std::string> backward;
  for (const std::string& call : calls) {
    if (call == "done 6") backward.clear();
    if (!absl::StartsWith(call, "acquire") && !absl::StartsWith(call, "release") &&
        !absl::StartsWith(call, "prefetch")) {
      backward.push_back(call);
    }
  }
  return backward;
}

TEST(DecoderTest, TransfersOfTheBackwardFlyWhileProductsThatDoNotNeedThemRun) {
  EXPECT_THAT(
      BackwardCalls({}),
      ElementsAre("done 6",
                  // Layer 2; nothing waits to be computed yet.
                  "begin dispatch", "begin dispatch", "finish dispatch",
                  "begin combine of gradients", "finish dispatch", "finish combine", "done 5",
                  // Layer 1 is dense: it first ends what layer 2 has left.
                  "done 4",
                  // Layer 0; the end of layer 1 comes while its rows travel.
                  "begin dispatch", "begin dispatch", "done 3", "finish dispatch",
                  "begin combine of gradients", "finish dispatch", "finish combine", "done 2",
                  "done 1", "done 0"));
}

TEST(DecoderTest, RowsDispatchedToRecomputeServeTheWeightGradientToo) {
  EXPECT_THAT(BackwardCalls(FullRecompute()),
              ElementsAre("done 6", "begin dispatch", "begin dispatch", "finish dispatch",
                          "finish dispatch", "begin combine of gradients", "finish combine",
                          "done 5", "done 4", "begin dispatch", "begin dispatch", "done 3",
                          "finish dispatch", "finish dispatch", "begin combine of gradients",
                          "finish combine", "done 2", "done 1", "done 0"));
}

TEST(DecoderTest, TheOverlappedBackwardGivesTheSameBits) {
  for (const DecoderOptions& options : {DecoderOptions(), FullRecompute()}) {
    Toy toy(options);
    LocalParameterStore local(BuildBuckets(toy.config, 0, toy.config.num_experts), at::kFloat);
    DrawWeights(8, &local);
    std::vector<std::string> calls;
    RecordingDispatcher dispatcher(toy.config.num_experts, &calls);
    Decoder overlapped(toy.config, options, local, dispatcher);
    for (int microbatch = 0; microbatch < 2; ++microbatch) {
      const DecoderBatch batch = DrawBatch(1 + microbatch, {4, 7}, toy.config.vocab_size);
      toy.decoder.ForwardBackward(batch, 1.0, 0.5);
      overlapped.ForwardBackward(batch, 1.0, 0.5);
    }
    const std::vector<at::Tensor> wanted = Gradients(toy.store), got = Gradients(local);
    for (size_t b = 0; b < wanted.size(); ++b) {
      EXPECT_TRUE(at::equal(got[b], wanted[b])) << toy.store.buckets()[b].name;
    }
  }
}

// Has room for what it is given only after MustRepeat has said so; before that rows are lost.
class LateDispatcher final : public TokenDispatcher {
 public:
  explicit LateDispatcher(int64_t num_experts) : local_(num_experts) {}
  int64_t num_local_experts() const override { return local_.num_local_experts(); }
  std::unique_ptr<DispatchPlan> Plan(const ops::Permutation& by_expert) override {
    return local_.Plan(by_expert);
  }
  std::unique_ptr<PendingDispatch> BeginDispatch(const DispatchPlan& plan, const at::Tensor& x_TH,
                                                 const at::Tensor& weights_TK) override {
    return local_.BeginDispatch(plan, has_room_ ? x_TH : at::zeros_like(x_TH), weights_TK);
  }
  DispatchedRows FinishDispatch(std::unique_ptr<PendingDispatch> pending) override {
    return local_.FinishDispatch(std::move(pending));
  }
  std::unique_ptr<PendingCombine> BeginCombine(const DispatchPlan& plan, const at::Tensor& rows_NH,
                                               const at::Tensor& dweights_PN) override {
    return local_.BeginCombine(plan, rows_NH, dweights_PN);
  }
  CombinedRows FinishCombine(std::unique_ptr<PendingCombine> pending,
                             const at::Tensor& residual_TH) override {
    return local_.FinishCombine(std::move(pending), residual_TH);
  }
  bool MustRepeat() override { return !std::exchange(has_room_, true); }

 private:
  LocalDispatcher local_;
  bool has_room_ = false;
};

TEST(DecoderTest, AForwardThatLackedRoomIsForgottenAndRunAgain) {
  for (const DecoderOptions& options : {DecoderOptions(), FullRecompute()}) {
    Toy toy(options);
    const ModelConfig& config = toy.config;
    LocalParameterStore store(BuildBuckets(config, 0, config.num_experts), at::kFloat);
    DrawWeights(8, &store);
    const DecoderBatch batch = DrawBatch(2, {4, 7, 1}, config.vocab_size);
    const LossSums want = toy.decoder.ForwardBackward(batch, 1.0, 0.5);
    LateDispatcher dispatcher(config.num_experts);
    Decoder decoder(config, options, store, dispatcher);
    const LossSums got = decoder.ForwardBackward(batch, 1.0, 0.5);
    EXPECT_EQ(Value(got.ce_sum), Value(want.ce_sum));
    EXPECT_TRUE(at::equal(got.token_copies_LE, want.token_copies_LE));
    const std::vector<at::Tensor> wanted = Gradients(toy.store), gradients = Gradients(store);
    for (size_t b = 0; b < wanted.size(); ++b) {
      EXPECT_TRUE(at::equal(gradients[b], wanted[b])) << store.buckets()[b].name;
    }
    EXPECT_EQ(store.num_held(), 0);
    LateDispatcher late_again(config.num_experts);
    EXPECT_EQ(Value(Decoder(config, options, store, late_again).Evaluate(batch).ce_sum),
              Value(want.ce_sum));
  }
}

TEST(DecoderTest, FullRecomputeGivesTheSameBits) {
  Toy lean;
  Toy recomputed(FullRecompute());
  const DecoderBatch batch = DrawBatch(2, {4, 7, 1}, lean.config.vocab_size);
  lean.decoder.ForwardBackward(batch, 0.1, 0.0);
  recomputed.decoder.ForwardBackward(batch, 0.1, 0.0);
  const std::vector<at::Tensor> a = Gradients(lean.store);
  const std::vector<at::Tensor> b = Gradients(recomputed.store);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << i;
}

TEST(DecoderTest, RunsTwiceToTheSameBits) {
  for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    Toy toy({}, type);
    const DecoderBatch batch = DrawBatch(2, {4, 7, 1}, toy.config.vocab_size);
    const LossSums first = toy.decoder.ForwardBackward(batch, 0.1, 0.0);
    const std::vector<at::Tensor> a = Gradients(toy.store);
    toy.store.ForgetGradients();
    const LossSums second = toy.decoder.ForwardBackward(batch, 0.1, 0.0);
    const std::vector<at::Tensor> b = Gradients(toy.store);
    EXPECT_EQ(Value(first.ce_sum), Value(second.ce_sum));
    for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << i;
  }
}

TEST(DecoderTest, GradientsOfMicrobatchesAddUp) {
  Toy whole, parts;
  const int64_t vocab = whole.config.vocab_size;
  const DecoderBatch a = DrawBatch(3, {5, 2}, vocab);
  const DecoderBatch b = DrawBatch(4, {6}, vocab);
  DecoderBatch both;
  both.tokens_T = at::cat({a.tokens_T, b.tokens_T});
  both.targets_T = at::cat({a.targets_T, b.targets_T});
  both.positions_T = at::cat({a.positions_T, b.positions_T});
  both.cu_seqlens = {0, 5, 7, 13};
  const LossSums sums = whole.decoder.ForwardBackward(both, 0.1, 0.0);
  const LossSums sums_a = parts.decoder.ForwardBackward(a, 0.1, 0.0);
  const LossSums sums_b = parts.decoder.ForwardBackward(b, 0.1, 0.0);
  EXPECT_NEAR(Value(sums.ce_sum), Value(sums_a.ce_sum) + Value(sums_b.ce_sum),
              1e-5 * Value(sums.ce_sum));
  EXPECT_EQ(sums.supervised, sums_a.supervised + sums_b.supervised);
  EXPECT_TRUE(at::equal(sums.token_copies_LE, sums_a.token_copies_LE + sums_b.token_copies_LE));
  const std::vector<at::Tensor> want = Gradients(whole.store);
  const std::vector<at::Tensor> got = Gradients(parts.store);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_LE(RelativeError(got[i], want[i]), 2e-6) << i;
}

TEST(DecoderTest, CountsEveryTokenCopy) {
  Toy toy;
  const DecoderBatch batch = DrawBatch(3, {5, 2}, toy.config.vocab_size);
  const LossSums sums = toy.decoder.Evaluate(batch);
  EXPECT_THAT(sums.token_copies_LE.sizes(), ElementsAre(2, 5));
  const at::Tensor per_layer = sums.token_copies_LE.sum(1);
  EXPECT_EQ(per_layer[0].item<int64_t>(), 7 * 2);
  EXPECT_EQ(per_layer[1].item<int64_t>(), 7 * 2);
  EXPECT_EQ(Value(toy.decoder.ForwardBackward(batch, 1.0, 0.0).ce_sum), Value(sums.ce_sum));
}

// models.md 17.14: bf16 is compared with fp32 within a tolerance, never bit by bit.
TEST(DecoderTest, HalfPrecisionFollowsSinglePrecision) {
  ModelConfig config = ToyConfig();
  config.top_k = config.num_experts;  // else a near tie may go the other way
  Toy half({}, at::kBFloat16, config);
  Toy single({}, at::kFloat, config);
  // The same weights, rounded.
  for (size_t b = 0; b < half.store.buckets().size(); ++b) {
    single.store.Acquire(static_cast<int>(b)).copy_(half.store.Acquire(static_cast<int>(b)));
  }
  const DecoderBatch batch = DrawBatch(2, {9, 7, 12}, half.config.vocab_size);
  const LossSums got = half.decoder.ForwardBackward(batch, 0.05, 0.0);
  const LossSums want = single.decoder.ForwardBackward(batch, 0.05, 0.0);
  EXPECT_NEAR(Value(got.ce_sum), Value(want.ce_sum), 0.02 * Value(want.ce_sum));
  const std::vector<at::Tensor> a = Gradients(half.store);
  const std::vector<at::Tensor> b = Gradients(single.store);
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].scalar_type(), at::kFloat);
    const double cosine = ((a[i] * b[i]).sum() / (a[i].norm() * b[i].norm())).item<double>();
    EXPECT_GT(cosine, 0.99) << half.store.buckets()[i].name;
  }
}

TEST(DecoderTest, RouterInSinglePrecisionChangesHalfPrecisionOnly) {
  DecoderOptions options;
  options.router_fp32 = true;
  const DecoderBatch batch = DrawBatch(2, {9, 7, 12}, ToyConfig().vocab_size);
  ModelConfig config = ToyConfig();
  config.top_k = config.num_experts;  // else a near tie may go the other way
  Toy single({}, at::kFloat, config), single_router(options, at::kFloat, config);
  EXPECT_TRUE(at::equal(single.decoder.Logits(batch), single_router.decoder.Logits(batch)));
  Toy half({}, at::kBFloat16, config), half_router(options, at::kBFloat16, config);
  const at::Tensor a = half.decoder.Logits(batch);
  const at::Tensor b = half_router.decoder.Logits(batch);
  EXPECT_FALSE(at::equal(a, b));
  EXPECT_LE(RelativeError(a, b), 0.05);
}

TEST(DecoderTest, ThePaddingRowGetsNoGradientFromTheEmbedding) {
  ModelConfig config = ToyConfig();
  config.pad_token_id = 3;
  Toy toy({}, at::kFloat, config);
  DecoderBatch batch = DrawBatch(2, {9}, config.vocab_size);
  batch.tokens_T.fill_(4);
  batch.tokens_T[2] = 3;
  toy.decoder.ForwardBackward(batch, 1.0, 0.0);
  const at::Tensor rows = toy.store.gradient(0).view({config.vocab_size, config.hidden_size});
  EXPECT_EQ(rows[3].abs().max().item<double>(), 0);
  EXPECT_GT(rows[4].abs().max().item<double>(), 0);
}

TEST(DecoderTest, RefusesIdsOutsideTheVocabulary) {
  Toy toy;
  DecoderBatch batch = DrawBatch(2, {9}, toy.config.vocab_size);
  batch.tokens_T[4] = 29;
  EXPECT_THAT([&] { toy.decoder.Evaluate(batch); },
              ThrowsMessage<c10::Error>(HasSubstr("29 does not fit a vocabulary of 29")));
  batch = DrawBatch(2, {9}, toy.config.vocab_size);
  batch.targets_T[4] = 31;
  EXPECT_THAT([&] { toy.decoder.Evaluate(batch); }, ThrowsMessage<c10::Error>(HasSubstr("31")));
  batch.targets_T[4] = -1;
  EXPECT_THAT([&] { toy.decoder.Evaluate(batch); }, ThrowsMessage<c10::Error>(HasSubstr("-1")));
}

TEST(DecoderTest, RefusesDocumentsThatDoNotCoverTheTokens) {
  Toy toy;
  DecoderBatch batch = DrawBatch(2, {9}, toy.config.vocab_size);
  batch.cu_seqlens = {0, 8};
  EXPECT_THAT([&] { toy.decoder.Evaluate(batch); },
              ThrowsMessage<c10::Error>(HasSubstr("end at 8, there are 9")));
}

}  // namespace
}  // namespace switchyard
