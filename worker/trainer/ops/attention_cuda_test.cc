// Attention on CUDA against plain ATen in float64 (attention_composed.h), which the CPU test
// compares with the loops.
#include "worker/trainer/ops/attention_cuda.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/ops/attention.h"
#include "worker/trainer/ops/attention_composed.h"

namespace switchyard::ops {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr auto kDevice = at::kCUDA;

std::vector<int64_t> Ends(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> out = {0};
  for (int64_t length : lengths) out.push_back(out.back() + length);
  return out;
}

struct Shape {
  std::string name;
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, d, window;
};

// q, k and v as slices of one fused projection.
struct Inputs {
  at::Tensor q, k, v, dout;
};

Inputs Draw(int64_t tokens, const Shape& s) {
  at::manual_seed(1);
  const auto draw = [&](int64_t heads) {
    return at::randn({tokens, heads, s.d}, at::TensorOptions(kDevice).dtype(at::kFloat))
        .to(at::kBFloat16);
  };
  const at::Tensor qkv = draw(s.heads + 2 * s.kv_heads);
  return {qkv.narrow(1, 0, s.heads), qkv.narrow(1, s.heads, s.kv_heads),
          qkv.narrow(1, s.heads + s.kv_heads, s.kv_heads), draw(s.heads)};
}

// Leaves not-a-numbers in the memory that the next tensors of these sizes get.
void Poison(const Inputs& in) {
  for (const at::Tensor& like : {in.q, in.q, in.k, in.k, in.v, in.v}) {
    at::full(like.sizes(), std::numeric_limits<double>::quiet_NaN(), like.options());
  }
  at::full({in.q.size(0), in.q.size(1)}, std::numeric_limits<double>::quiet_NaN(),
           in.q.options().dtype(at::kFloat));
}

// Every document on its own: an error in a short one must not drown. `floor` is the size of values
// below which differences are noise of bf16.
void ExpectNear(const char* what, const at::Tensor& got, const at::Tensor& want,
                const std::vector<int64_t>& ends, double tolerance, double floor) {
  ASSERT_EQ(got.sizes(), want.sizes()) << what;
  const at::Tensor difference = (got.to(at::kDouble) - want).square();
  const at::Tensor size = want.square();
  for (size_t i = 0; i + 1 < ends.size(); ++i) {
    if (ends[i] == ends[i + 1]) continue;
    const auto rms = [&](const at::Tensor& x) {
      return std::sqrt(x.slice(0, ends[i], ends[i + 1]).mean().item<double>());
    };
    const double error = rms(difference), bound = tolerance * (rms(size) + floor);
    // Negated, so that not-a-number fails.
    if (!(error <= bound)) {
      ADD_FAILURE() << what << ": document " << i << " of " << ends[i + 1] - ends[i]
                    << " tokens is off by " << error << ", allowed " << bound;
      return;
    }
  }
}

class AttentionCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (c10::cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }
};

enum class Backend { kChosen, kDeterministic, kFlash };

class AttentionCudaShapesTest : public AttentionCudaTest,
                                public testing::WithParamInterface<std::tuple<Backend, Shape>> {};

TEST_P(AttentionCudaShapesTest, EqualsDoublePrecision) {
  const auto& [backend, s] = GetParam();
  const std::vector<int64_t> ends = Ends(s.lengths);
  const double scale = 1 / std::sqrt(static_cast<double>(s.d));
  const Inputs in = Draw(ends.back(), s);
  const AttentionPlan plan =
      MakeAttentionPlan(ends, in.q.device(), backend == Backend::kDeterministic);
  const auto wide = [](const at::Tensor& x) { return x.to(at::kDouble); };
  const AttentionOutput want =
      ComposedAttentionForward(wide(in.q), wide(in.k), wide(in.v), plan, scale, s.window);
  const AttentionGradients want_d = ComposedAttentionBackward(
      wide(in.dout), wide(in.q), wide(in.k), wide(in.v), want, plan, scale, s.window);
  Poison(in);
  AttentionOutput got;
  AttentionGradients got_d;
  if (backend == Backend::kFlash) {
    const on_cuda::AttentionInputs inputs{in.q, in.k, in.v, plan, scale, s.window};
    got = on_cuda::FlashAttentionForward(inputs);
    got_d = on_cuda::FlashAttentionBackward(inputs, in.dout, got, /*deterministic=*/false);
  } else {
    got = AttentionForward(in.q, in.k, in.v, plan, scale, s.window);
    got_d = AttentionBackward(in.dout, in.q, in.k, in.v, got, plan, scale, s.window);
  }
  ExpectNear("out", got.out_TNd, want.out_TNd, ends, 6e-3, 0.1);
  ExpectNear("log-sum-exp", got.log_sum_exp_TN, want.log_sum_exp_TN, ends, 1e-4, 1);
  ExpectNear("dq", got_d.dq_TNd, want_d.dq_TNd, ends, 1e-2, 0.3);
  ExpectNear("dk", got_d.dk_TMd, want_d.dk_TMd, ends, 1e-2, 0.3);
  ExpectNear("dv", got_d.dv_TMd, want_d.dv_TMd, ends, 1e-2, 0.3);
}

std::vector<int64_t> ManyShort() {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < 300; ++i) lengths.push_back(1 + i * 7 % 31);
  return lengths;
}

std::vector<Shape> Shapes() {
  return {{"One", {1}, 4, 2, 128, 0},
          {"Two", {2}, 4, 2, 128, 0},
          {"BelowATile", {127}, 4, 2, 128, 0},
          {"Long", {4096}, 8, 1, 128, 0},
          {"Ragged", {1, 2, 127, 0, 1500, 3, 128, 129, 0, 256, 64}, 32, 4, 128, 0},
          {"ManyShort", ManyShort(), 8, 1, 128, 0},
          {"EmptyEnds", {0, 0, 70, 0, 300, 0}, 8, 1, 128, 0},
          {"EveryHeadItsOwn", {200, 333}, 6, 6, 64, 0},
          {"SmallHeads", {5, 200, 31}, 4, 2, 32, 0},
          {"OddHeads", {77, 130}, 4, 2, 96, 0},
          {"LargeHeads", {77, 600}, 4, 2, 256, 0},
          {"Window", {1000, 50, 301, 128}, 8, 2, 128, 100},
          {"WindowOfOne", {33, 200}, 4, 2, 128, 1},
          {"WindowBeyondDocuments", {40, 90}, 4, 2, 128, 1000}};
}

std::string CaseName(const testing::TestParamInfo<std::tuple<Backend, Shape>>& info) {
  const char* names[] = {"Chosen", "Deterministic", "Flash"};
  return names[static_cast<int>(std::get<0>(info.param))] + std::get<1>(info.param).name;
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionCudaShapesTest,
                         testing::Combine(testing::Values(Backend::kChosen, Backend::kDeterministic,
                                                          Backend::kFlash),
                                          testing::ValuesIn(Shapes())),
                         CaseName);

TEST_F(AttentionCudaTest, CudnnServesTheModelsShapes) {
  for (const Shape& s : {Shape{"", {500, 300}, 32, 4, 128, 0}, Shape{"", {500, 300}, 8, 2, 64, 0},
                         Shape{"", {500, 300}, 32, 4, 128, 100}}) {
    const Inputs in = Draw(800, s);
    const AttentionPlan plan = MakeAttentionPlan(Ends(s.lengths), in.q.device());
    const on_cuda::AttentionInputs inputs{in.q, in.k, in.v, plan, 0.1, s.window};
    AttentionOutput out;
    EXPECT_EQ(on_cuda::CudnnAttentionForward(inputs, &out), "") << s.d << " " << s.window;
    AttentionGradients gradients;
    EXPECT_EQ(on_cuda::CudnnAttentionBackward(inputs, in.dout, out, &gradients), "")
        << s.d << " " << s.window;
  }
}

TEST_F(AttentionCudaTest, AgreesWithTheCpu) {
  const Shape s{"", {5, 120, 1, 64}, 8, 2, 64, 0};
  const std::vector<int64_t> ends = Ends(s.lengths);
  const Inputs in = Draw(ends.back(), s);
  const auto host = [](const at::Tensor& x) { return x.cpu().to(at::kFloat); };
  const AttentionPlan cpu_plan = MakeAttentionPlan(ends);
  const AttentionOutput want =
      AttentionForward(host(in.q), host(in.k), host(in.v), cpu_plan, 0.2, 0);
  const AttentionGradients want_d =
      AttentionBackward(host(in.dout), host(in.q), host(in.k), host(in.v), want, cpu_plan, 0.2, 0);
  const AttentionPlan plan = MakeAttentionPlan(ends, in.q.device());
  for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const auto as = [&](const at::Tensor& x) { return x.to(type); };
    const AttentionOutput got = AttentionForward(as(in.q), as(in.k), as(in.v), plan, 0.2, 0);
    const AttentionGradients got_d =
        AttentionBackward(as(in.dout), as(in.q), as(in.k), as(in.v), got, plan, 0.2, 0);
    const double tolerance = type == at::kFloat ? 1e-5 : 1e-2;
    const auto wide = [](const at::Tensor& x) { return x.to(at::kDouble); };
    ExpectNear("out", host(got.out_TNd), wide(want.out_TNd), ends, tolerance, 0.1);
    ExpectNear("dq", host(got_d.dq_TNd), wide(want_d.dq_TNd), ends, tolerance, 0.3);
    ExpectNear("dk", host(got_d.dk_TMd), wide(want_d.dk_TMd), ends, tolerance, 0.3);
    ExpectNear("dv", host(got_d.dv_TMd), wide(want_d.dv_TMd), ends, tolerance, 0.3);
  }
}

TEST_F(AttentionCudaTest, NoTokensGiveEmptyTensors) {
  const Shape s{"", {}, 8, 2, 128, 0};
  const Inputs in = Draw(0, s);
  for (const std::vector<int64_t>& ends : {std::vector<int64_t>{0}, {0, 0, 0}}) {
    const AttentionPlan plan = MakeAttentionPlan(ends, in.q.device());
    const AttentionOutput out = AttentionForward(in.q, in.k, in.v, plan, 0.2, 0);
    EXPECT_EQ(out.out_TNd.sizes(), in.q.sizes());
    const AttentionGradients d = AttentionBackward(in.dout, in.q, in.k, in.v, out, plan, 0.2, 0);
    EXPECT_EQ(d.dk_TMd.sizes(), in.k.sizes());
  }
}

TEST_F(AttentionCudaTest, GradientsGoWhereTheyAreWanted) {
  const Shape s{"", {100, 37}, 8, 2, 128, 0};
  const Inputs in = Draw(137, s);
  for (bool deterministic : {false, true}) {
    const AttentionPlan plan = MakeAttentionPlan(Ends(s.lengths), in.q.device(), deterministic);
    const AttentionOutput out = AttentionForward(in.q, in.k, in.v, plan, 0.1, 0);
    const AttentionGradients want = AttentionBackward(in.dout, in.q, in.k, in.v, out, plan, 0.1, 0);
    at::Tensor fused = at::full({137, 12, 128}, 7, in.q.options());
    AttentionGradients into;
    into.dv_TMd = fused.narrow(1, 10, 2);
    const AttentionGradients got =
        AttentionBackward(in.dout, in.q, in.k, in.v, out, plan, 0.1, 0, into);
    EXPECT_TRUE(at::equal(got.dv_TMd, want.dv_TMd));
    EXPECT_TRUE(at::equal(fused.narrow(1, 10, 2), want.dv_TMd));
    EXPECT_TRUE(at::equal(fused.narrow(1, 0, 10), at::full({137, 10, 128}, 7, in.q.options())));
  }
}

TEST_F(AttentionCudaTest, DeterministicBackwardGivesTheSameBits) {
  const Shape s{"", {2048, 700, 1, 1347}, 32, 4, 128, 0};
  const Inputs in = Draw(4096, s);
  const AttentionPlan plan = MakeAttentionPlan(Ends(s.lengths), in.q.device(), true);
  const AttentionOutput out = AttentionForward(in.q, in.k, in.v, plan, 0.1, 0);
  const AttentionGradients first = AttentionBackward(in.dout, in.q, in.k, in.v, out, plan, 0.1, 0);
  for (int i = 0; i < 20; ++i) {
    const AttentionOutput again = AttentionForward(in.q, in.k, in.v, plan, 0.1, 0);
    ASSERT_TRUE(at::equal(out.out_TNd, again.out_TNd));
    ASSERT_TRUE(at::equal(out.log_sum_exp_TN, again.log_sum_exp_TN));
    const AttentionGradients d = AttentionBackward(in.dout, in.q, in.k, in.v, out, plan, 0.1, 0);
    ASSERT_TRUE(at::equal(first.dq_TNd, d.dq_TNd));
    ASSERT_TRUE(at::equal(first.dk_TMd, d.dk_TMd));
    ASSERT_TRUE(at::equal(first.dv_TMd, d.dv_TMd));
  }
  EXPECT_FALSE(at::globalContext().deterministicAlgorithms());  // as it was
}

// Fails on every wait that LibTorch knows of. What it does not, a capture refuses.
class NoSynchronization {
 public:
  NoSynchronization() {
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
  }
  ~NoSynchronization() {
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
  }
};

TEST_F(AttentionCudaTest, NeverWaitsForTheDevice) {
  const Shape s{"", {300, 212}, 32, 4, 128, 0};
  const Inputs in = Draw(512, s);
  const NoSynchronization guard;
  for (bool deterministic : {false, true}) {
    for (int64_t window : {0, 100}) {
      const AttentionPlan plan = MakeAttentionPlan(Ends(s.lengths), in.q.device(), deterministic);
      const AttentionOutput out = AttentionForward(in.q, in.k, in.v, plan, 0.1, window);
      AttentionBackward(in.dout, in.q, in.k, in.v, out, plan, 0.1, window);
    }
  }
}

TEST_F(AttentionCudaTest, ACapturedGraphSeesOtherDocumentsOfItsSize) {
  const Shape s{"", {500, 12}, 32, 4, 128, 0};
  const Inputs in = Draw(512, s);
  for (bool deterministic : {false, true}) {
    const auto plan_of = [&](const std::vector<int64_t>& lengths) {
      return MakeAttentionPlan(Ends(lengths), in.q.device(), deterministic);
    };
    AttentionPlan held = plan_of({500, 12});
    AttentionOutput out;
    AttentionGradients d;
    at::cuda::CUDAGraph graph;
    {
      const c10::cuda::CUDAStreamGuard stream(c10::cuda::getStreamFromPool());
      const auto run = [&] {
        out = AttentionForward(in.q, in.k, in.v, held, 0.1, 0);
        d = AttentionBackward(in.dout, in.q, in.k, in.v, out, held, 0.1, 0);
      };
      c10::cuda::getCurrentCUDAStream().synchronize();
      run();
      c10::cuda::device_synchronize();
      graph.capture_begin();
      run();
      graph.capture_end();
    }
    for (const std::vector<int64_t>& lengths :
         {std::vector<int64_t>{500, 12}, {1, 300, 211}, {257, 100, 0, 50, 50, 55}}) {
      const AttentionPlan next = plan_of(lengths);
      held.Assign(next);
      c10::cuda::device_synchronize();
      graph.replay();
      c10::cuda::device_synchronize();
      const AttentionOutput want = AttentionForward(in.q, in.k, in.v, next, 0.1, 0);
      const AttentionGradients want_d =
          AttentionBackward(in.dout, in.q, in.k, in.v, want, next, 0.1, 0);
      EXPECT_TRUE(at::equal(out.out_TNd, want.out_TNd));
      EXPECT_TRUE(at::equal(d.dk_TMd, want_d.dk_TMd));
      EXPECT_TRUE(at::equal(d.dv_TMd, want_d.dv_TMd));
      ExpectNear("dq", d.dq_TNd, want_d.dq_TNd.to(at::kDouble), Ends(lengths), 1e-3, 0.1);
    }
  }
}

TEST_F(AttentionCudaTest, HeadsWithoutAKernelAreAClearError) {
  const Shape s{"", {40}, 4, 2, 20, 0};
  const Inputs in = Draw(40, s);
  const AttentionPlan plan = MakeAttentionPlan(Ends(s.lengths), in.q.device());
  EXPECT_THAT([&] { AttentionForward(in.q, in.k, in.v, plan, 0.1, 0); },
              ThrowsMessage<c10::Error>(HasSubstr("no kernel for head_dim 20 on CUDA")));
}

}  // namespace
}  // namespace switchyard::ops
