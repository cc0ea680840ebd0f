// The whole training loop on one GPU: the CPU's losses, the same bits where they are promised,
// state that moves between GPU and CPU. Needs a GPU of compute capability 9.0.
#include <c10/core/DeviceType.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/parallel/tiny_job.h"
#include "worker/trainer/failure.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Property;
using testing::SizeIs;
using testing::Throws;

class TrainerCudaTest : public testing::Test {
 protected:
  TrainerCudaTest() { MakeTinyData(folder_.path(), /*for_kernels=*/true); }
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no GPU";
  }
  TinyJob Job(const std::string& name, const std::string& device = "cuda:0") {
    TinyJob job;
    job.folder = folder_.path();
    job.job_dir = folder_.path() + "/" + name;
    job.device = device;
    job.max_steps = 20;
    job.lr = 3e-3;
    return job;
  }
  // bf16 weights and moments with an exact master.
  TinyJob Bf16(const std::string& name) {
    TinyJob job = Job(name);
    job.dtype = "bfloat16";
    job.moment_dtype = "bfloat16";
    return job;
  }
  TempFolder folder_;
};

double LargestDifference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    largest = std::max(largest, std::abs(a[i] - b[i]));
  }
  return largest;
}

TEST_F(TrainerCudaTest, Float32FollowsTheCpu) {
  TinyJob job = Job("gpu");
  job.val_every_steps = 10;
  const RunReport gpu = RunInThreads(job);
  job = Job("cpu", "cpu");
  job.val_every_steps = 10;
  const RunReport cpu = RunInThreads(job);
  ASSERT_THAT(gpu.steps, SizeIs(20));
  EXPECT_LT(gpu.steps.back().loss, 0.9 * gpu.steps.front().loss) << "nothing was learnt";
  EXPECT_LE(LargestDifference(gpu.Losses(), cpu.Losses()), 1e-4);
  for (size_t i = 0; i < gpu.steps.size(); ++i) {
    EXPECT_NEAR(gpu.steps[i].grad_norm, cpu.steps[i].grad_norm, 1e-3) << i;
    EXPECT_NEAR(gpu.steps[i].aux_loss, cpu.steps[i].aux_loss, 1e-4) << i;
    EXPECT_EQ(gpu.steps[i].supervised_tokens, cpu.steps[i].supervised_tokens);
    EXPECT_NEAR(gpu.steps[i].expert_load_max_over_mean, cpu.steps[i].expert_load_max_over_mean,
                0.1);
  }
  ASSERT_THAT(gpu.validations, SizeIs(2));
  EXPECT_NEAR(gpu.validations[1].loss, cpu.validations[1].loss, 1e-4);
}

TEST_F(TrainerCudaTest, Bfloat16FollowsFloat32AndMicrobatchesDoNotMatter) {
  const RunReport fp32 = RunInThreads(Job("fp32"));
  const RunReport many = RunInThreads(Bf16("many"));  // four micro-batches a step
  TinyJob job = Bf16("one");
  job.local_batch_size = 8;
  const RunReport one = RunInThreads(job);
  EXPECT_LE(LargestDifference(many.Losses(), fp32.Losses()), 0.05);
  EXPECT_LE(LargestDifference(one.Losses(), many.Losses()), 0.03);
  std::printf("bf16: from fp32 %.4f, one micro-batch from four %.4f\n",
              LargestDifference(many.Losses(), fp32.Losses()),
              LargestDifference(one.Losses(), many.Losses()));
}

TEST_F(TrainerCudaTest, EightBytesAParameterTrainToo) {
  TinyJob job = Bf16("eight");
  job.gradient_dtype = "bfloat16";
  job.exact_master = false;
  const RunReport eight = RunInThreads(job);
  EXPECT_LE(LargestDifference(eight.Losses(), RunInThreads(Bf16("exact")).Losses()), 0.2);
  EXPECT_LT(eight.steps.back().loss, 0.9 * eight.steps.front().loss);
}

TEST_F(TrainerCudaTest, RecomputingAndOffloadingChangeNoLoss) {
  const RunReport lean = RunInThreads(Bf16("lean"));
  for (const char* memory : {"ACTIVATION_MEMORY_FULL_RECOMPUTE", "ACTIVATION_MEMORY_OFFLOAD"}) {
    TinyJob job = Bf16(memory);
    job.activation_memory = memory;
    EXPECT_LE(LargestDifference(RunInThreads(job).Losses(), lean.Losses()), 0.02) << memory;
  }
}

TEST_F(TrainerCudaTest, DeterministicRunsGiveTheSameBitsAlsoAcrossAStop) {
  TinyJob whole = Bf16("whole");
  whole.deterministic = true;
  TinyJob again = whole, part = whole, rest = whole;
  again.job_dir = folder_.path() + "/again";
  part.job_dir = folder_.path() + "/part";
  rest.job_dir = folder_.path() + "/rest";
  const RunReport first = RunInThreads(whole);
  const RunReport second = RunInThreads(again);
  EXPECT_EQ(first.Losses(), second.Losses());
  ASSERT_THAT(first.checkpoints, SizeIs(1));
  EXPECT_EQ(WeightBytes(first.checkpoints[0].path), WeightBytes(second.checkpoints[0].path));

  const RunReport stopped =
      RunInThreads(part, [](const StepFrame& step) { return step.step == 8; });
  ASSERT_TRUE(stopped.stopped);
  ASSERT_THAT(stopped.checkpoints, SizeIs(1));
  rest.resume_from = stopped.checkpoints[0].path;
  const RunReport resumed = RunInThreads(rest);
  std::vector<double> losses = stopped.Losses();
  for (double loss : resumed.Losses()) losses.push_back(loss);
  EXPECT_EQ(losses, first.Losses());
  ASSERT_THAT(resumed.checkpoints, SizeIs(1));
  EXPECT_EQ(WeightBytes(resumed.checkpoints[0].path), WeightBytes(first.checkpoints[0].path));
}

TEST_F(TrainerCudaTest, StateMovesBetweenGpuAndCpu) {
  const std::vector<std::string> places = {"cuda:0", "cpu"};
  const RunReport whole = RunInThreads(Job("whole", "cpu"));
  for (const std::string& from : places) {
    const RunReport part = RunInThreads(Job("part-" + from.substr(0, 3), from),
                                        [](const StepFrame& step) { return step.step == 5; });
    ASSERT_THAT(part.checkpoints, SizeIs(1)) << from;
    for (const std::string& to : places) {
      TinyJob rest = Job("rest-" + from.substr(0, 3) + "-" + to.substr(0, 3), to);
      rest.resume_from = part.checkpoints[0].path;
      const RunReport resumed = RunInThreads(rest);
      ASSERT_THAT(resumed.steps, SizeIs(20 - part.done_step));
      for (const StepFrame& step : resumed.steps) {
        EXPECT_NEAR(step.loss, whole.steps[static_cast<size_t>(step.step) - 1].loss, 1e-4)
            << from << " to " << to << " step " << step.step;
      }
    }
  }
}

// Experts over all ranks, over pairs with their shards across, and everything sharded.
const Gang kGangs[] = {{2, 1, 2}, {4, 1, 4}, {4, 1, 2}, {4, 1, 1}};

std::string Name(const Gang& gang) {
  return std::to_string(gang.world) + "x" + std::to_string(gang.ep);
}

TEST_F(TrainerCudaTest, RanksFollowOneRankInFloat32) {
  const RunReport one = RunInThreads(Job("one"));
  for (const Gang& gang : kGangs) {
    TinyJob job = Job(Name(gang), "cuda");
    job.gang = gang;
    const double difference = LargestDifference(RunInThreads(job).Losses(), one.Losses());
    EXPECT_LE(difference, 1e-4) << Name(gang);
    std::printf("float32, %s: from one rank %.1e\n", Name(gang).c_str(), difference);
  }
}

// What one rank and several add up in another order in bf16: 0.03, as one micro-batch and four.
TEST_F(TrainerCudaTest, RanksFollowOneRankInBfloat16AndRepeatTheirBits) {
  const RunReport one = RunInThreads(Bf16("one"));
  for (const Gang& gang : kGangs) {
    TinyJob job = Bf16(Name(gang));
    job.device = "cuda";
    job.gang = gang;
    job.deterministic = true;
    const RunReport first = RunInThreads(job);
    const double difference = LargestDifference(first.Losses(), one.Losses());
    EXPECT_LE(difference, 0.03) << Name(gang);
    std::printf("bf16, %s: from one rank %.4f\n", Name(gang).c_str(), difference);
    job.job_dir += "-again";
    const RunReport second = RunInThreads(job);
    EXPECT_EQ(first.Losses(), second.Losses()) << Name(gang);
    ASSERT_THAT(first.checkpoints, SizeIs(1));
    EXPECT_EQ(WeightBytes(first.checkpoints[0].path), WeightBytes(second.checkpoints[0].path))
        << Name(gang);
    job.job_dir += "-kept";
    job.reshard_after_forward = false;
    EXPECT_EQ(RunInThreads(job).Losses(), first.Losses()) << Name(gang) << " kept gathered";
    job.job_dir += "-recomputed";
    job.activation_memory = "ACTIVATION_MEMORY_FULL_RECOMPUTE";
    EXPECT_LE(LargestDifference(RunInThreads(job).Losses(), first.Losses()), 0.02)
        << Name(gang) << " recomputed";
  }
}

TEST_F(TrainerCudaTest, NonfiniteStepsAreSkippedOnTheDevice) {
  TinyJob job = Bf16("diverges");
  job.lr = 1e30;
  std::vector<StepFrame> steps;
  EXPECT_THAT(
      [&] {
        RunInThreads(job, [&steps](const StepFrame& step) {
          steps.push_back(step);
          return false;
        });
      },
      Throws<TrainError>(
          AllOf(Property(&TrainError::reason, FailureReason::kNanLoss),
                Property(&std::exception::what, HasSubstr("not finite 3 times in a row")))));
  ASSERT_THAT(steps, SizeIs(5));
  EXPECT_FALSE(steps[1].skipped);
  EXPECT_TRUE(steps[2].skipped);
}

TEST_F(TrainerCudaTest, ReportsMemoryUtilisationAndPhases) {
  TinyJob job = Bf16("frames");
  job.max_steps = 6;
  const RunReport report = RunInThreads(job);
  ASSERT_THAT(report.steps, SizeIs(6));
  const StepFrame& step = report.steps[4];
  EXPECT_GT(step.memory_bytes, 1 << 20);
  EXPECT_GT(step.mfu, 0);
  EXPECT_LT(step.mfu, 1);
  double phases = 0;
  for (const auto& [name, seconds] : step.phase_seconds) phases += seconds;
  EXPECT_NEAR(phases, step.step_seconds, 1e-4);
}

TEST_F(TrainerCudaTest, AGpuThatIsNotThereIsRefused) {
  EXPECT_THAT([&] { RunInThreads(Job("none", "cuda:63")); },
              Throws<TrainError>(AllOf(Property(&TrainError::reason, FailureReason::kConfigInvalid),
                                       Property(&std::exception::what, HasSubstr("GPUs")))));
}

}  // namespace
}  // namespace switchyard
