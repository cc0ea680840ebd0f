// The whole training loop, ranks as threads: the same losses however the model is spread, the same
// bits in every run and across a stop and resume.
#include <unistd.h>

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
using testing::Contains;
using testing::Each;
using testing::HasSubstr;
using testing::Property;
using testing::SizeIs;
using testing::Throws;

class TrainerTest : public testing::Test {
 protected:
  TrainerTest() { MakeTinyData(folder_.path()); }
  TinyJob Job(const std::string& name, Gang gang = {}) {
    TinyJob job;
    job.folder = folder_.path();
    job.job_dir = folder_.path() + "/" + name;
    job.gang = gang;
    return job;
  }
  TempFolder folder_;
};

std::string Name(const Gang& gang) {
  return std::to_string(gang.world) + "x" + std::to_string(gang.replicate) + "x" +
         std::to_string(gang.ep);
}

TEST_F(TrainerTest, EveryMeshGivesTheLossesOfOneRank) {
  TinyJob job = Job("one");
  job.val_every_steps = 7;
  const RunReport one = RunInThreads(job);
  ASSERT_THAT(one.steps, SizeIs(14));
  ASSERT_THAT(one.validations, SizeIs(2));
  EXPECT_LT(one.steps.back().loss, 0.9 * one.steps.front().loss) << "nothing was learnt";
  EXPECT_GT(one.steps.back().aux_loss, 0.01 * 1.9) << "coefficient x top_k at balance";
  for (const Gang& gang : std::vector<Gang>{
           {2, 1, 1}, {2, 1, 2}, {2, 2, 1}, {4, 1, 1}, {4, 1, 2}, {4, 1, 4}, {4, 2, 2}}) {
    job = Job(Name(gang), gang);
    job.val_every_steps = 7;
    const RunReport many = RunInThreads(job);
    ASSERT_THAT(many.steps, SizeIs(14)) << Name(gang);
    for (size_t i = 0; i < one.steps.size(); ++i) {
      const StepFrame& a = one.steps[i];
      const StepFrame& b = many.steps[i];
      EXPECT_NEAR(b.loss, a.loss, 1e-5) << Name(gang) << " step " << a.step;
      EXPECT_NEAR(b.aux_loss, a.aux_loss, 1e-6) << Name(gang) << " step " << a.step;
      EXPECT_NEAR(b.grad_norm, a.grad_norm, 1e-4) << Name(gang) << " step " << a.step;
      EXPECT_EQ(b.tokens, a.tokens);
      EXPECT_EQ(b.supervised_tokens, a.supervised_tokens);
      EXPECT_EQ(b.learning_rate, a.learning_rate);
      EXPECT_NEAR(b.expert_load_max_over_mean, a.expert_load_max_over_mean, 1e-3);
    }
    for (size_t i = 0; i < one.validations.size(); ++i) {
      EXPECT_NEAR(many.validations[i].loss, one.validations[i].loss, 1e-5) << Name(gang);
      EXPECT_EQ(many.validations[i].tokens, one.validations[i].tokens) << Name(gang);
    }
  }
}

TEST_F(TrainerTest, TheSameRunTwiceGivesTheSameBits) {
  for (const Gang& gang : std::vector<Gang>{{4, 1, 1}, {4, 1, 2}, {4, 1, 4}}) {
    const RunReport first = RunInThreads(Job("first-" + Name(gang), gang));
    const RunReport second = RunInThreads(Job("second-" + Name(gang), gang));
    EXPECT_EQ(first.Losses(), second.Losses()) << Name(gang);
    ASSERT_THAT(first.checkpoints, SizeIs(1));
    EXPECT_EQ(WeightBytes(first.checkpoints[0].path), WeightBytes(second.checkpoints[0].path))
        << Name(gang);
  }
}

TEST_F(TrainerTest, KeepingBucketsGatheredChangesNoBit) {
  TinyJob job = Job("gathered", {2, 1, 1});
  job.reshard_after_forward = false;
  EXPECT_EQ(RunInThreads(job).Losses(), RunInThreads(Job("resharded", {2, 1, 1})).Losses());
}

TEST_F(TrainerTest, RecomputingOnSeveralRanksChangesNoBit) {
  for (const Gang& gang : std::vector<Gang>{{4, 1, 2}, {4, 1, 4}}) {
    TinyJob job = Job("recomputed-" + Name(gang), gang);
    job.activation_memory = "ACTIVATION_MEMORY_FULL_RECOMPUTE";
    EXPECT_EQ(RunInThreads(job).Losses(), RunInThreads(Job("lean-" + Name(gang), gang)).Losses())
        << Name(gang);
  }
}

struct ResumeCase {
  const char* name;
  Gang gang;
  const char* dtype;
  const char* moments;
};

class ResumeTest : public TrainerTest, public testing::WithParamInterface<ResumeCase> {};

INSTANTIATE_TEST_SUITE_P(Kinds, ResumeTest,
                         testing::Values(ResumeCase{"OneRank", {1, 1, 1}, "float32", "float32"},
                                         ResumeCase{"FourRanks", {4, 1, 2}, "float32", "float32"},
                                         ResumeCase{"Bfloat16", {2, 1, 2}, "bfloat16", "bfloat16"}),
                         [](const testing::TestParamInfo<ResumeCase>& info) {
                           return info.param.name;
                         });

TEST_P(ResumeTest, StoppingAndResumingChangesNoBit) {
  TinyJob whole = Job("whole", GetParam().gang);
  whole.dtype = GetParam().dtype;
  whole.moment_dtype = GetParam().moments;
  TinyJob part = whole;
  part.job_dir = folder_.path() + "/part";
  TinyJob rest = whole;
  rest.job_dir = folder_.path() + "/rest";

  const RunReport never_stopped = RunInThreads(whole);
  const RunReport stopped =
      RunInThreads(part, [](const StepFrame& step) { return step.step == 8; });
  ASSERT_TRUE(stopped.stopped);
  ASSERT_EQ(stopped.done_step, 8);
  ASSERT_THAT(stopped.checkpoints, SizeIs(1));
  EXPECT_FALSE(stopped.checkpoints[0].final);
  rest.resume_from = stopped.checkpoints[0].path;
  const RunReport resumed = RunInThreads(rest);

  std::vector<double> losses = stopped.Losses();
  for (double loss : resumed.Losses()) losses.push_back(loss);
  EXPECT_EQ(losses, never_stopped.Losses());
  ASSERT_THAT(resumed.checkpoints, SizeIs(1));
  EXPECT_TRUE(resumed.checkpoints[0].final);
  EXPECT_FALSE(WeightBytes(resumed.checkpoints[0].path).empty());
  EXPECT_EQ(WeightBytes(resumed.checkpoints[0].path),
            WeightBytes(never_stopped.checkpoints[0].path));
}

TEST_F(TrainerTest, AnotherWorldSizeResumesToTheSameLosses) {
  const RunReport whole = RunInThreads(Job("whole"));
  const RunReport part =
      RunInThreads(Job("part", {2, 1, 2}), [](const StepFrame& step) { return step.step == 5; });
  TinyJob rest = Job("rest", {4, 1, 2});
  rest.resume_from = part.checkpoints.at(0).path;
  const RunReport resumed = RunInThreads(rest);
  ASSERT_THAT(resumed.steps, SizeIs(9));
  for (size_t i = 0; i < resumed.steps.size(); ++i) {
    EXPECT_EQ(resumed.steps[i].step, whole.steps[i + 5].step);
    EXPECT_NEAR(resumed.steps[i].loss, whole.steps[i + 5].loss, 1e-5);
  }
}

TEST_F(TrainerTest, ReportsPhasesPlanAndCheckpoints) {
  TinyJob job = Job("frames", {2, 1, 2});
  job.max_steps = 4;
  job.every_steps = 2;
  const RunReport report = RunInThreads(job);
  EXPECT_THAT(report.phases, AllOf(Contains("loading"), Contains("training"), Contains("saving"),
                                   Contains("validating")));
  ASSERT_THAT(report.plans, SizeIs(1));
  EXPECT_GT(report.plans[0].total, 0);
  ASSERT_THAT(report.checkpoints, SizeIs(2));
  EXPECT_EQ(report.checkpoints[0].step, 2);
  EXPECT_FALSE(report.checkpoints[0].final);
  EXPECT_EQ(report.checkpoints[1].step, 4);
  EXPECT_TRUE(report.checkpoints[1].final);
  EXPECT_TRUE(report.checkpoints[1].validation_loss.has_value());
  EXPECT_EQ(report.done_step, 4);
  EXPECT_FALSE(report.stopped);
  for (const StepFrame& step : report.steps) {
    EXPECT_GT(step.memory_bytes, 1 << 20);
    EXPECT_GT(step.tokens_per_second, step.supervised_tokens_per_second);
    EXPECT_GE(step.expert_load_max_over_mean, 1.0);
    EXPECT_TRUE(step.phase_seconds.count("forward_backward"));
  }
  EXPECT_TRUE(report.steps[2].phase_seconds.count("checkpoint")) << "the save after step 2";
}

TEST_F(TrainerTest, NonfiniteStepsAreSkippedByAllRanksAndEndTheJob) {
  TinyJob job = Job("diverges", {2, 1, 2});
  job.lr = 1e30;  // the warm-up's first step has rate 0, the second one ruins the weights
  std::vector<StepFrame> steps;
  const auto collect = [&steps](const StepFrame& step) {
    steps.push_back(step);
    return false;
  };
  EXPECT_THAT([&] { RunInThreads(job, collect); },
              Throws<TrainError>(AllOf(
                  Property(&TrainError::reason, FailureReason::kNanLoss),
                  Property(&std::exception::what, HasSubstr("not finite 3 times in a row")))));
  ASSERT_THAT(steps, SizeIs(5));
  EXPECT_FALSE(steps[1].skipped);
  EXPECT_TRUE(steps[2].skipped);
  EXPECT_EQ(steps[4].skipped_total, 3);
}

TEST_F(TrainerTest, ACheckpointOfOtherDataOrSeedIsRefused) {
  TinyJob job = Job("part");
  job.max_steps = 2;
  const RunReport part = RunInThreads(job);
  TempFolder other;
  MakeTinyData(other.path());
  ASSERT_EQ(
      rename((other.path() + "/validation.tok").c_str(), (other.path() + "/train.tok").c_str()), 0);
  MakeTinyData(folder_.path());
  TinyJob rest = Job("rest");
  rest.resume_from = part.checkpoints.at(0).path;
  rest.folder = other.path();
  ASSERT_EQ(symlink((folder_.path() + "/validation.tok").c_str(),
                    (other.path() + "/validation.tok").c_str()),
            0);
  EXPECT_THAT(
      [&] { RunInThreads(rest); },
      Throws<TrainError>(AllOf(Property(&TrainError::reason, FailureReason::kCheckpointInvalid),
                               Property(&std::exception::what,
                                        HasSubstr("fingerprint was tiny-1, the job has tiny-2")))));
}

}  // namespace
}  // namespace switchyard
