// The model on CUDA against the same model on the CPU, which twin_test.cc compares with autograd.
//
// bf16 is judged by the error that bf16 makes on the CPU, both against float64 from the same
// (rounded) weights.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAFunctions.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/models/decoder.h"
#include "worker/trainer/models/memory_plan.h"
#include "worker/trainer/models/models_test_support.h"
#include "worker/trainer/models/saved_bytes_test_support.h"
#include "worker/trainer/parallel/local_dispatcher.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// Sizes that the kernels serve, no two equal.
ModelConfig KernelConfig() {
  ModelConfig c;
  c.model_type = "qwen3_moe";
  c.vocab_size = 520;
  c.hidden_size = 192;
  c.intermediate_size = 296;
  c.num_layers = 3;
  c.num_heads = 8;
  c.num_kv_heads = 2;
  c.head_dim = 64;
  c.moe_intermediate_size = 104;
  c.num_experts = 16;
  c.top_k = 4;
  c.norm_topk_prob = true;
  c.mlp_only_layers = {1};
  return c;
}

struct Model {
  Model(const ModelConfig& config, const DecoderOptions& options, at::ScalarType type,
        at::Device device, at::ScalarType gradient_type = at::kFloat)
      : config(config),
        store(BuildBuckets(config, 0, config.num_experts), type, device, gradient_type),
        dispatcher(config.num_experts),
        decoder(config, options, store, dispatcher) {
    // The same values in every dtype: those that bf16 can hold.
    at::manual_seed(21);
    for (size_t b = 0; b < store.buckets().size(); ++b) {
      const at::Tensor flat = store.Acquire(static_cast<int>(b));
      for (const TensorSlot& slot : store.buckets()[b].slots) {
        at::Tensor values = at::randn({slot.numel}, at::kDouble);
        if (absl::EndsWith(slot.name, "norm.weight")) {
          values = values * 0.1 + 1.0;
        } else if (!absl::EndsWith(slot.name, "embed_tokens.weight")) {
          values = values * (absl::EndsWith(slot.name, "gate.weight") ? 0.3 : 0.08);
        }
        flat.narrow(0, slot.offset, slot.numel).copy_(values.to(at::kBFloat16));
      }
      store.Release(static_cast<int>(b));
    }
  }

  // Gradients on the CPU in float64, one per tensor of the checkpoint.
  std::vector<at::Tensor> GradientsByTensor() {
    std::vector<at::Tensor> out;
    for (size_t b = 0; b < store.buckets().size(); ++b) {
      const at::Tensor flat = store.gradient(static_cast<int>(b)).cpu().to(at::kDouble);
      for (const TensorSlot& slot : store.buckets()[b].slots) {
        out.push_back(flat.narrow(0, slot.offset, slot.numel));
      }
    }
    return out;
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> out;
    for (const BucketLayout& bucket : store.buckets()) {
      for (const TensorSlot& slot : bucket.slots) out.push_back(slot.name);
    }
    return out;
  }

  ModelConfig config;
  LocalParameterStore store;
  LocalDispatcher dispatcher;
  Decoder decoder;
};

// Of vectors, as a whole; not-a-number when either holds one.
double Distance(const at::Tensor& got, const at::Tensor& want) {
  const double size = want.to(at::kDouble).norm().item<double>();
  const double difference =
      (got.cpu().to(at::kDouble) - want.cpu().to(at::kDouble)).norm().item<double>();
  return size == 0 ? difference : difference / size;
}

class ModelsCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (c10::cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }
};

struct Case {
  const char* name;
  std::function<void(ModelConfig&, DecoderOptions&)> change;
};

class ModelsCudaCaseTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (c10::cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
    GetParam().change(config_, options_);
    options_.loss_chunk_tokens = 64;  // several chunks, the last one ragged
    batch_ = DrawBatch(9, {37, 1, 0, 64, 5, 130}, config_.vocab_size);
  }
  ModelConfig config_ = KernelConfig();
  DecoderOptions options_;
  DecoderBatch batch_;
};

TEST_P(ModelsCudaCaseTest, SinglePrecisionEqualsTheCpu) {
  Model cpu(config_, options_, at::kFloat, at::kCPU);
  Model cuda(config_, options_, at::kFloat, at::kCUDA);
  EXPECT_LE(Distance(cuda.decoder.Logits(batch_), cpu.decoder.Logits(batch_)), 2e-5);
  const LossSums want = cpu.decoder.ForwardBackward(batch_, 0.02, 0.3);
  const LossSums got = cuda.decoder.ForwardBackward(batch_, 0.02, 0.3);
  EXPECT_NEAR(Value(got.ce_sum), Value(want.ce_sum), 1e-5 * Value(want.ce_sum));
  EXPECT_NEAR(Value(got.aux), Value(want.aux), 1e-5 * Value(want.aux));
  EXPECT_EQ(got.supervised, want.supervised);
  EXPECT_TRUE(at::equal(got.token_copies_LE.cpu(), want.token_copies_LE));
  const std::vector<at::Tensor> a = cuda.GradientsByTensor(), b = cpu.GradientsByTensor();
  for (size_t i = 0; i < a.size(); ++i) EXPECT_LE(Distance(a[i], b[i]), 1e-4) << cpu.Names()[i];
}

TEST_P(ModelsCudaCaseTest, HalfPrecisionIsAsGoodAsOnTheCpu) {
  Model exact(config_, options_, at::kDouble, at::kCPU);
  Model cpu(config_, options_, at::kBFloat16, at::kCPU);
  Model cuda(config_, options_, at::kBFloat16, at::kCUDA);
  const at::Tensor logits = exact.decoder.Logits(batch_);
  const double cpu_logits = Distance(cpu.decoder.Logits(batch_), logits);
  EXPECT_LE(Distance(cuda.decoder.Logits(batch_), logits), 1.5 * cpu_logits);
  const LossSums want = exact.decoder.ForwardBackward(batch_, 0.02, 0.3);
  cpu.decoder.ForwardBackward(batch_, 0.02, 0.3);
  const LossSums got = cuda.decoder.ForwardBackward(batch_, 0.02, 0.3);
  EXPECT_NEAR(Value(got.ce_sum), Value(want.ce_sum), 0.005 * Value(want.ce_sum));
  EXPECT_NEAR(Value(got.aux), Value(want.aux), 0.01 * Value(want.aux));
  EXPECT_EQ(got.token_copies_LE.sum().item<int64_t>(), want.token_copies_LE.sum().item<int64_t>());
  const std::vector<at::Tensor> gradients = exact.GradientsByTensor();
  const std::vector<at::Tensor> of_cuda = cuda.GradientsByTensor();
  const std::vector<at::Tensor> of_cpu = cpu.GradientsByTensor();
  double worst = 0, worst_cpu = 0;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const double error = Distance(of_cuda[i], gradients[i]);
    const double allowed = Distance(of_cpu[i], gradients[i]);
    // Negated, so that not-a-number fails. Where few terms make a gradient, chance makes one error
    // larger than the other.
    if (!(error <= 1.5 * allowed + 0.01)) {
      ADD_FAILURE() << exact.Names()[i] << ": " << error << ", on the CPU " << allowed;
    }
    worst = std::max(worst, error);
    worst_cpu = std::max(worst_cpu, allowed);
  }
  std::printf("%s: worst gradient %.4f, on the CPU %.4f\n", GetParam().name, worst, worst_cpu);
}

INSTANTIATE_TEST_SUITE_P(Cases, ModelsCudaCaseTest,
                         testing::Values(Case{"AllExperts",  // no near tie can go the other way
                                              [](ModelConfig& c, DecoderOptions&) {
                                                c.top_k = c.num_experts;
                                              }},
                                         Case{"Routed", [](ModelConfig&, DecoderOptions&) {}},
                                         Case{"HfAux",
                                              [](ModelConfig& c, DecoderOptions& o) {
                                                c.top_k = c.num_experts;
                                                c.norm_topk_prob = false;
                                                o.aux_loss = AuxLoss::kHf;
                                              }},
                                         Case{"MegatronAux",
                                              [](ModelConfig& c, DecoderOptions& o) {
                                                c.top_k = c.num_experts;
                                                o.aux_loss = AuxLoss::kMegatron;
                                              }},
                                         Case{"RouterInSinglePrecision",
                                              [](ModelConfig& c, DecoderOptions& o) {
                                                c.top_k = c.num_experts;
                                                o.router_fp32 = true;
                                              }},
                                         Case{"BiasAndTied",
                                              [](ModelConfig& c, DecoderOptions&) {
                                                c.top_k = c.num_experts;
                                                c.attention_bias = true;
                                                c.tie_word_embeddings = true;
                                                c.pad_token_id = 3;
                                              }},
                                         Case{"WindowAndYarn",
                                              [](ModelConfig& c, DecoderOptions&) {
                                                c.top_k = c.num_experts;
                                                c.sliding_window = 16;
                                                c.max_window_layers = 1;
                                                c.rope.type = RopeType::kYarn;
                                                c.rope.factor = 4;
                                                c.rope.original_max_position_embeddings = 64;
                                              }},
                                         Case{"WideHeads",
                                              [](ModelConfig& c, DecoderOptions&) {
                                                c.top_k = c.num_experts;
                                                c.head_dim = 128;
                                              }},
                                         Case{"ComposedRope",  // no kernel for such heads
                                              [](ModelConfig& c, DecoderOptions&) {
                                                c.top_k = c.num_experts;
                                                c.head_dim = 32;
                                              }},
                                         Case{"ComposedHead",  // nor for such a vocabulary
                                              [](ModelConfig& c, DecoderOptions&) {
                                                c.top_k = c.num_experts;
                                                c.vocab_size = 501;
                                              }}),
                         [](const auto& info) { return info.param.name; });

DecoderOptions Memory(ActivationMemory memory) {
  DecoderOptions options;
  options.activation_memory = memory;
  options.deterministic = true;
  options.aux_loss = AuxLoss::kHf;
  return options;
}

constexpr ActivationMemory kModes[] = {ActivationMemory::kLean, ActivationMemory::kFullRecompute,
                                       ActivationMemory::kOffload};

TEST_F(ModelsCudaTest, GivesTheSameBitsTwiceAndHoweverActivationsAreKept) {
  ModelConfig config = KernelConfig();
  config.num_layers = 5;
  const DecoderBatch batch = DrawBatch(4, {100, 300, 7}, config.vocab_size);
  std::vector<at::Tensor> first;
  for (int run = 0; run < 2; ++run) {
    for (ActivationMemory memory : kModes) {
      Model model(config, Memory(memory), at::kBFloat16, at::kCUDA);
      for (int microbatch = 0; microbatch < 2; ++microbatch) {  // the second one accumulates
        model.decoder.ForwardBackward(batch, 0.02, 0.1);
      }
      const std::vector<at::Tensor> gradients = model.GradientsByTensor();
      if (first.empty()) first = gradients;
      for (size_t i = 0; i < first.size(); ++i) {
        EXPECT_TRUE(at::equal(gradients[i], first[i]))
            << static_cast<int>(memory) << " " << model.Names()[i];
      }
    }
  }
}

TEST_F(ModelsCudaTest, GradientsOverwriteThenAccumulateInEitherDtype) {
  const ModelConfig config = KernelConfig();
  const DecoderBatch batch = DrawBatch(4, {100, 30}, config.vocab_size);
  DecoderOptions options = Memory(ActivationMemory::kLean);
  Model wide(config, options, at::kBFloat16, at::kCUDA);
  Model narrow(config, options, at::kBFloat16, at::kCUDA, at::kBFloat16);
  wide.decoder.ForwardBackward(batch, 0.02, 0.1);
  narrow.decoder.ForwardBackward(batch, 0.02, 0.1);
  const std::vector<at::Tensor> once = wide.GradientsByTensor();
  std::vector<at::Tensor> rounded = narrow.GradientsByTensor();
  for (size_t i = 0; i < once.size(); ++i) {
    EXPECT_LE(Distance(rounded[i], once[i]), 0.006) << wide.Names()[i];
  }
  wide.decoder.ForwardBackward(batch, 0.02, 0.1);
  narrow.decoder.ForwardBackward(batch, 0.02, 0.1);
  const std::vector<at::Tensor> twice = wide.GradientsByTensor();
  rounded = narrow.GradientsByTensor();
  for (size_t i = 0; i < once.size(); ++i) {
    EXPECT_LE(Distance(twice[i], 2 * once[i]), 1e-5) << wide.Names()[i];
    EXPECT_LE(Distance(rounded[i], 2 * once[i]), 0.008) << wide.Names()[i];
  }
}

TEST_F(ModelsCudaTest, AnEmptyMicrobatchGivesZeros) {
  const ModelConfig config = KernelConfig();
  for (ActivationMemory memory : kModes) {
    for (at::ScalarType gradient : {at::kFloat, at::kBFloat16}) {
      Model model(config, Memory(memory), at::kBFloat16, at::kCUDA, gradient);
      const LossSums sums =
          model.decoder.ForwardBackward(DrawBatch(1, {}, config.vocab_size), 1.0, 1.0);
      EXPECT_EQ(Value(sums.ce_sum), 0);
      EXPECT_EQ(Value(sums.aux), 0);
      EXPECT_EQ(sums.token_copies_LE.sum().item<int64_t>(), 0);
      for (const at::Tensor& g : model.GradientsByTensor()) {
        EXPECT_EQ(g.abs().max().item<double>(), 0);
      }
    }
  }
}

// Turns every wait of the host that ATen knows of into an exception.
class NoWaiting {
 public:
  NoWaiting() { Set(c10::cuda::SyncDebugMode::L_ERROR); }
  ~NoWaiting() { Set(c10::cuda::SyncDebugMode::L_DISABLED); }

 private:
  static void Set(c10::cuda::SyncDebugMode mode) {
    c10::cuda::warning_state().set_sync_debug_mode(mode);
  }
};

TEST_F(ModelsCudaTest, AMicrobatchNeverWaitsForTheDevice) {
  const ModelConfig config = KernelConfig();
  for (bool deterministic : {false, true}) {
    for (ActivationMemory memory : kModes) {
      for (at::ScalarType gradient : {at::kFloat, at::kBFloat16}) {
        DecoderOptions options = Memory(memory);
        options.deterministic = deterministic;
        Model model(config, options, at::kBFloat16, at::kCUDA, gradient);
        // Plans and tables are made once per size.
        model.decoder.ForwardBackward(DrawBatch(2, {60, 200}, config.vocab_size), 0.1, 0.1);
        const DecoderBatch batch = DrawBatch(3, {210, 50}, config.vocab_size);
        const NoWaiting no_waiting;
        EXPECT_NO_THROW(model.decoder.ForwardBackward(batch, 0.1, 0.1));
        EXPECT_NO_THROW(model.decoder.Evaluate(batch));
      }
    }
  }
  const at::Tensor one = at::ones({}, at::kCUDA);
  const NoWaiting no_waiting;
  EXPECT_ANY_THROW(one.item<float>());  // the check checks
}

TEST_F(ModelsCudaTest, KeepsWhatTheMemoryPlanSays) {
  constexpr int64_t kTokens = 250;
  const ModelConfig config = KernelConfig();
  MemoryPlanInput input;
  input.microbatch_tokens = kTokens;
  input.weight_bytes = 2;
  const int64_t head = kTokens * input.weight_bytes * config.hidden_size;
  EXPECT_EQ(PlanMemory(config, input).activations,
            head + KeptByAllBlocks(config, false, at::kBFloat16, kTokens, at::kCUDA));
}

TEST_F(ModelsCudaTest, SaysWhichSizesItCannotServe) {
  ModelConfig config = KernelConfig();
  config.moe_intermediate_size = 100;
  Model model(config, {}, at::kBFloat16, at::kCUDA);
  EXPECT_THAT(
      [&] { model.decoder.Evaluate(DrawBatch(1, {8}, config.vocab_size)); },
      ThrowsMessage<c10::Error>(AllOf(HasSubstr("must be multiples of 8"), HasSubstr("ffn 100"))));
}

}  // namespace
}  // namespace switchyard
