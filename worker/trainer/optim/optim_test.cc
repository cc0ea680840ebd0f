// Adam against torch.optim's formulas in ATen, exact masters, stochastic rounding, the global norm
// on several meshes, and the non-finite guard.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/optim/grad_clip.h"
#include "worker/trainer/optim/nonfinite_guard.h"
#include "worker/trainer/parallel/in_process_comm.h"

namespace switchyard {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

at::Tensor Random(int64_t numel, int seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn({numel}, generator, at::kFloat);
}

TensorSlot Slot(const char* name, int64_t offset, int64_t numel, bool decay = true) {
  return {name, {numel}, offset, numel, decay};
}

std::vector<BucketLayout> Layouts() {
  std::vector<BucketLayout> layouts(2);
  layouts[0] = {"dense", BucketKind::kDense, -1, 101, {Slot("a", 0, 60), Slot("b", 60, 41)}};
  layouts[1] = {"experts", BucketKind::kExpert, 0, 70, {Slot("c", 0, 70)}};
  return layouts;
}

// One rank's store; lives inside RunInProcess.
struct Alone {
  InProcessWorld world{absl::Seconds(10)};
  Mesh mesh;
  Comms comms{world.MakeComms(mesh)};
  ShardedParameterStore store;
  explicit Alone(std::vector<BucketLayout> layouts, at::ScalarType dtype = at::kFloat,
                 at::ScalarType gradient_dtype = at::kFloat)
      : store(std::move(layouts), mesh, comms,
              {.weight_dtype = dtype, .gradient_dtype = gradient_dtype}) {}
  void SetGradient(int bucket, const at::Tensor& gradient) {
    store.BeginMicrobatch(true, true);
    store.Gradient(bucket).flat.copy_(gradient);
    store.FinishGradients();
  }
};

std::vector<BucketLayout> OneBucket(int64_t numel) {
  return {{"dense", BucketKind::kDense, -1, numel, {Slot("a", 0, numel)}}};
}

// torch.optim.AdamW, or Adam, one tensor, in the dtype of its arguments.
void TorchStep(at::Tensor& p, at::Tensor g, at::Tensor& m, at::Tensor& v, int64_t step, double lr,
               const AdamOptions& o) {
  if (o.decoupled) {
    p.mul_(1 - lr * o.weight_decay);
  } else {
    g = g.add(p, o.weight_decay);
  }
  m.lerp_(g, 1 - o.beta1);
  v.mul_(o.beta2).addcmul_(g, g, 1 - o.beta2);
  const double correction1 = 1 - std::pow(o.beta1, step);
  const double correction2 = 1 - std::pow(o.beta2, step);
  const at::Tensor denominator = (v.sqrt() / std::sqrt(correction2)).add_(o.eps);
  p.addcdiv_(m, denominator, -lr / correction1);
}

class AdamTest : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Kinds, AdamTest, testing::Values(true, false),
                         [](const testing::TestParamInfo<bool>& info) {
                           return info.param ? "AdamW" : "Adam";
                         });

TEST_P(AdamTest, EachStepEqualsTorchsFormula) {
  AdamOptions options;
  options.decoupled = GetParam();
  options.weight_decay = 0.1;
  Alone alone(OneBucket(1000));
  alone.store.weight_shard(0).copy_(Random(1000, 1));
  Adam adam(options, alone.store, 0);
  for (int64_t step = 1; step <= 20; ++step) {
    const double lr = 1e-2 / step, scale = 0.5;
    const at::Tensor gradient = Random(1000, 100 + step);
    at::Tensor p = alone.store.weight_shard(0).clone();
    at::Tensor m = adam.state(0).exp_avg.clone(), v = adam.state(0).exp_avg_sq.clone();
    TorchStep(p, gradient * scale, m, v, step, lr, options);

    alone.SetGradient(0, gradient);
    adam.Step(step, lr, {.scale = scale});
    alone.store.WeightsChanged();
    const at::Tensor got = alone.store.weight_shard(0);
    // One rounding of fp32 (2^-23) of the operands: fused multiply-adds in ATen round less often.
    ASSERT_TRUE(at::allclose(got, p, 1e-7, 6e-9)) << step << " " << (got - p).abs().max();
    ASSERT_TRUE(at::allclose(adam.state(0).exp_avg, m, 1e-7, 6e-8)) << step;
    ASSERT_TRUE(at::allclose(adam.state(0).exp_avg_sq, v, 2e-7, 1e-10)) << step;
  }
}

TEST_P(AdamTest, FiftyStepsStayCloseToFp64) {
  AdamOptions options;
  options.decoupled = GetParam();
  Alone alone(OneBucket(500));
  alone.store.weight_shard(0).copy_(Random(500, 1));
  Adam adam(options, alone.store, 0);
  at::Tensor p = Random(500, 1).to(at::kDouble);
  at::Tensor m = at::zeros_like(p), v = at::zeros_like(p);
  for (int64_t step = 1; step <= 50; ++step) {
    const at::Tensor gradient = Random(500, 100 + step);
    TorchStep(p, gradient.to(at::kDouble), m, v, step, 1e-3, options);
    alone.SetGradient(0, gradient);
    adam.Step(step, 1e-3, {});
    alone.store.WeightsChanged();
  }
  EXPECT_TRUE(at::allclose(alone.store.weight_shard(0).to(at::kDouble), p, 2e-6, 2e-6));
}

TEST(AdamWTest, DecaySkipsSlotsThatSayNo) {
  Alone alone({{"dense",
                BucketKind::kDense,
                -1,
                30,
                {Slot("a", 0, 10), Slot("b", 10, 10, false), Slot("c", 20, 10)}}});
  alone.store.weight_shard(0).fill_(1.0);
  AdamOptions options;
  options.weight_decay = 0.5;
  Adam adam(options, alone.store, 0);
  alone.SetGradient(0, at::zeros({30}));
  adam.Step(1, 0.1, {});
  const at::Tensor weight = alone.store.weight_shard(0);
  EXPECT_TRUE(at::equal(weight.narrow(0, 10, 10), at::ones({10})));
  EXPECT_TRUE(at::equal(weight.narrow(0, 0, 10), at::full({10}, 0.95f)));
  EXPECT_TRUE(at::equal(weight.narrow(0, 20, 10), at::full({10}, 0.95f)));
}

TEST(AdamWTest, MasterPartsAreExactForEveryLowHalf) {
  // All 65536 low halves, over upper halves that are even, odd, negative, and next to a power of
  // two.
  for (int64_t high : {0x3F80, 0x3F81, 0xBF80, 0x0001, 0x7F7E, 0x3FFF}) {
    at::Tensor bits = at::arange(0, 65536, at::kLong) + (high << 16);
    const at::Tensor master = bits.to(at::kInt).view(at::kFloat);
    at::Tensor weight = at::empty({65536}, at::kBFloat16), low = at::empty({65536}, at::kShort);
    PartsFromMaster(master, weight, low);
    ASSERT_TRUE(at::equal(MasterFromParts(weight, low).view(at::kInt), master.view(at::kInt)))
        << high;
    // The weight is the nearest bf16; only halves may differ from torch, which rounds them to even.
    const at::Tensor differs =
        weight.view(at::kShort).ne(master.to(at::kBFloat16).view(at::kShort));
    ASSERT_LE(differs.sum().item<int64_t>(), 1) << high;
  }
}

TEST(AdamWTest, Bf16WeightsFollowTheFp32RunExactly) {
  const AdamOptions options;
  const at::Tensor start = Random(300, 3).to(at::kBFloat16);
  Alone full(OneBucket(300)), half(OneBucket(300), at::kBFloat16);
  full.store.weight_shard(0).copy_(start);
  half.store.weight_shard(0).copy_(start);
  Adam full_adam(options, full.store, 0), half_adam(options, half.store, 0);
  for (int64_t step = 1; step <= 10; ++step) {
    const at::Tensor gradient = Random(300, 200 + step);
    full.SetGradient(0, gradient);
    half.SetGradient(0, gradient);
    full_adam.Step(step, 1e-3, {});
    half_adam.Step(step, 1e-3, {});
    full.store.WeightsChanged();
    half.store.WeightsChanged();
  }
  EXPECT_TRUE(at::equal(MasterFromParts(half.store.weight_shard(0), half_adam.state(0).remainder),
                        full.store.weight_shard(0)));
}

TEST(AdamWTest, Bf16WeightsWithoutMasterMoveOnAverage) {
  AdamOptions options;
  options.exact_master = false;
  options.weight_decay = 0;
  constexpr int64_t kNumel = 20000;
  Alone alone(OneBucket(kNumel), at::kBFloat16, at::kBFloat16);
  alone.store.weight_shard(0).fill_(1.0);
  Adam adam(options, alone.store, 0);
  EXPECT_FALSE(adam.state(0).remainder.defined());
  // Each update is 1e-4, a fortieth of the grid's step below 1: rounding to nearest would lose all.
  for (int64_t step = 1; step <= 20; ++step) {
    alone.SetGradient(0, at::ones({kNumel}));
    adam.Step(step, 1e-4, {});
    alone.store.WeightsChanged();
  }
  const double mean = alone.store.weight_shard(0).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(mean, 1 - 20e-4, 1e-4);
}

TEST(AdamWTest, Bf16GradientsAreWhatTheirFp32CopiesAre) {
  Alone full(OneBucket(300), at::kBFloat16), half(OneBucket(300), at::kBFloat16, at::kBFloat16);
  Adam full_adam({}, full.store, 0), half_adam({}, half.store, 0);
  for (int64_t step = 1; step <= 3; ++step) {
    const at::Tensor gradient = Random(300, 200 + step).to(at::kBFloat16);
    full.SetGradient(0, gradient);
    half.SetGradient(0, gradient);
    ASSERT_EQ(half.store.gradient_shard(0).scalar_type(), at::kBFloat16);
    const at::Tensor loss = at::zeros({}, at::kDouble);
    EXPECT_EQ(ControlUpdate(half.store, half.comms, loss, 1.0).norm,
              ControlUpdate(full.store, full.comms, loss, 1.0).norm);
    full_adam.Step(step, 1e-3, {});
    half_adam.Step(step, 1e-3, {});
    full.store.WeightsChanged();
    half.store.WeightsChanged();
  }
  EXPECT_TRUE(at::equal(half.store.weight_shard(0), full.store.weight_shard(0)));
  EXPECT_TRUE(at::equal(half_adam.state(0).remainder, full_adam.state(0).remainder));
}

TEST(AdamWTest, ASkippedUpdateChangesNothing) {
  Alone alone(OneBucket(100));
  alone.store.weight_shard(0).copy_(Random(100, 1));
  Adam adam({}, alone.store, 0);
  alone.SetGradient(0, Random(100, 2));
  adam.Step(1, 1e-2, {.apply = false});
  EXPECT_TRUE(at::equal(alone.store.weight_shard(0), Random(100, 1)));
  EXPECT_EQ(adam.state(0).exp_avg.abs().max().item<double>(), 0);
}

TEST(AdamWTest, Bf16MomentsAreUnbiased) {
  AdamOptions options;
  options.moment_dtype = at::kBFloat16;
  options.beta1 = 0.99;
  constexpr int64_t kNumel = 20000;
  Alone alone(OneBucket(kNumel));
  Adam adam(options, alone.store, 0);
  // The same gradient every time: rounding to nearest would stop moving well before 1 - 0.99^n.
  for (int64_t step = 1; step <= 200; ++step) {
    alone.SetGradient(0, at::ones({kNumel}));
    adam.Step(step, 0.0, {});
    alone.store.WeightsChanged();
  }
  const double m = adam.state(0).exp_avg.to(at::kDouble).mean().item<double>();
  const double v = adam.state(0).exp_avg_sq.to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(m, 1 - std::pow(0.99, 200), 1e-3);
  EXPECT_NEAR(v, 1 - std::pow(0.999, 200), 1e-3);
}

// Weights, state and norm of a run on `mesh`, put together again into whole buckets.
struct Whole {
  std::vector<at::Tensor> weights, exp_avg;
  double norm = 0;
};

Whole RunMesh(int world, int replicate, int ep, at::ScalarType moment_dtype, int threads) {
  Whole whole;
  for (const BucketLayout& layout : Layouts()) {
    const int64_t copies = layout.kind == BucketKind::kExpert ? ep : 1;
    whole.weights.push_back(at::zeros({copies, layout.numel}));
    whole.exp_avg.push_back(at::zeros({copies, layout.numel}));
  }
  at::set_num_threads(threads);
  RunInProcess(world, absl::Seconds(30), [&](int rank, InProcessWorld& in_process) {
    const Mesh mesh = MakeMesh(world, rank, replicate, ep, 0).value();
    const Comms comms = in_process.MakeComms(mesh);
    ShardedParameterStore store(Layouts(), mesh, comms, {});
    AdamOptions options;
    options.moment_dtype = moment_dtype;
    Adam adam(options, store, mesh.ep_rank());
    double norm = 0;
    for (int64_t step = 1; step <= 3; ++step) {
      store.BeginMicrobatch(true, true);
      for (int b = 0; b < store.num_buckets(); ++b) {
        // Only the first rank of those who share a gradient adds it, so that all worlds agree.
        const bool expert = store.layout(b).kind == BucketKind::kExpert;
        if (expert ? rank >= ep : rank > 0) continue;
        store.Gradient(b).flat.copy_(
            Random(store.layout(b).numel, 10 * step + b + (expert ? 1000 * mesh.ep_rank() : 0)));
      }
      store.FinishGradients();
      const UpdateControl control = ControlUpdate(store, comms, at::zeros({}, at::kDouble), 1.0);
      norm = control.norm;
      adam.Step(step, 1e-2, control);
      store.WeightsChanged();
    }
    for (int b = 0; b < store.num_buckets(); ++b) {
      const bool expert = store.layout(b).kind == BucketKind::kExpert;
      const ShardRange range = store.shard_range(b);
      const auto place = [&](at::Tensor& to, const at::Tensor& from) {
        to[expert ? mesh.ep_rank() : 0].narrow(0, range.begin, range.numel()).copy_(from);
      };
      place(whole.weights[b], store.weight_shard(b));
      place(whole.exp_avg[b], adam.state(b).exp_avg.to(at::kFloat));
    }
    if (rank == 0) whole.norm = norm;
  });
  return whole;
}

TEST(ShardedAdamTest, EveryShardingGivesTheSameBits) {
  for (at::ScalarType moments : {at::kFloat, at::kBFloat16}) {
    const Whole one = RunMesh(2, 1, 2, moments, 1);
    const std::vector<std::vector<int>> meshes = {{2, 1, 2}, {4, 1, 2}, {4, 2, 2}, {8, 2, 2}};
    for (const std::vector<int>& m : meshes) {
      const Whole other = RunMesh(m[0], m[1], m[2], moments, 2);
      EXPECT_NEAR(other.norm, one.norm, 1e-12 * one.norm);
      for (size_t b = 0; b < one.weights.size(); ++b) {
        EXPECT_TRUE(at::equal(other.weights[b], one.weights[b])) << m[0] << " ranks";
        EXPECT_TRUE(at::equal(other.exp_avg[b], one.exp_avg[b])) << m[0] << " ranks";
      }
    }
  }
}

TEST(GradClipTest, NormCountsEverySliceOnce) {
  // All gradients 1 on one rank of each group: 101 dense elements, 70 for each of the two ep ranks.
  RunInProcess(4, absl::Seconds(30), [](int rank, InProcessWorld& world) {
    const Mesh mesh = MakeMesh(4, rank, 1, 2, 0).value();
    const Comms comms = world.MakeComms(mesh);
    ShardedParameterStore store(Layouts(), mesh, comms, {});
    store.BeginMicrobatch(true, true);
    if (rank == 0) store.Gradient(0).flat.fill_(1.0);
    if (rank < 2) store.Gradient(1).flat.fill_(1.0);
    store.FinishGradients();
    const at::Tensor loss = at::zeros({}, at::kDouble);
    UpdateControl control = ControlUpdate(store, comms, loss, 0.0);
    ASSERT_DOUBLE_EQ(control.norm, std::sqrt(101.0 + 2 * 70.0));
    ASSERT_TRUE(control.apply);
    ASSERT_EQ(control.scale, 1.0);
    ASSERT_DOUBLE_EQ(ControlUpdate(store, comms, loss, 2.0).scale, 2.0 / (control.norm + 1e-6));
    ASSERT_FALSE(ControlUpdate(store, comms, loss + kInf, 2.0).apply);
  });
}

TEST(GradClipTest, OneNanOnOneRankIsSeenByAll) {
  RunInProcess(2, absl::Seconds(30), [](int rank, InProcessWorld& world) {
    const Mesh mesh = MakeMesh(2, rank, 1, 2, 0).value();
    const Comms comms = world.MakeComms(mesh);
    ShardedParameterStore store(Layouts(), mesh, comms, {});
    store.BeginMicrobatch(true, true);
    if (rank == 1) store.Gradient(1).flat.fill_(0)[69].fill_(std::nan(""));
    store.FinishGradients();
    const UpdateControl control = ControlUpdate(store, comms, at::zeros({}, at::kDouble), 1.0);
    ASSERT_TRUE(std::isnan(control.norm));
    ASSERT_FALSE(control.apply);
  });
}

TEST(GradClipTest, CoefficientIsTorchs) {
  EXPECT_DOUBLE_EQ(ClipCoefficient(2.0, 1.0), 1.0 / (2.0 + 1e-6));
  EXPECT_DOUBLE_EQ(ClipCoefficient(0.5, 1.0), 1.0);
  EXPECT_DOUBLE_EQ(ClipCoefficient(0.0, 1.0), 1.0);
  EXPECT_DOUBLE_EQ(ClipCoefficient(100.0, 0.0), 1.0) << "0: no clipping";
}

TEST(NonfiniteGuardTest, SkipsCountsAndGivesUpAfterSoManyInARow) {
  NonfiniteGuard guard(2);
  EXPECT_TRUE(guard.Allow(1.0, 1.0));
  EXPECT_FALSE(guard.Allow(std::nan(""), 1.0));
  EXPECT_FALSE(guard.Exhausted());
  EXPECT_TRUE(guard.Allow(1.0, 1.0)) << "a good step starts the count again";
  EXPECT_FALSE(guard.Allow(1.0, kInf));
  EXPECT_FALSE(guard.Allow(1.0, -kInf));
  EXPECT_TRUE(guard.Exhausted());
  EXPECT_EQ(guard.total(), 3);
}

TEST(NonfiniteGuardTest, AResumedRunGoesOnCounting) {
  NonfiniteGuard guard(3, 2, 7);
  EXPECT_FALSE(guard.Allow(std::nan(""), 1.0));
  EXPECT_TRUE(guard.Exhausted());
  EXPECT_EQ(guard.total(), 8);
}

}  // namespace
}  // namespace switchyard
