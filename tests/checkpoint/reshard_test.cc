// A job that changes its number of ranks at every resume trains as on one rank.
#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/parallel/tiny_job.h"
#include "worker/trainer/checkpoint/manifest.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/checkpoint/safetensors.h"

namespace switchyard {
namespace {

using testing::SizeIs;

// All tensors of a checkpoint, float32 or int16, by name.
std::map<std::string, at::Tensor> Tensors(const std::string& folder) {
  std::map<std::string, at::Tensor> tensors;
  for (const ManifestFile& file : OrThrow(ReadManifest(folder)).files) {
    if (file.name.find(".safetensors") == std::string::npos ||
        file.name.find(".json") != std::string::npos) {
      continue;
    }
    const auto opened = OrThrow(SafetensorsFile::Open(folder + "/" + file.name));
    for (const TensorInfo& info : opened->header().tensors) {
      const absl::string_view bytes = opened->Bytes(info);
      const at::ScalarType dtype = info.dtype == TensorDtype::kF32    ? at::kFloat
                                   : info.dtype == TensorDtype::kBf16 ? at::kBFloat16
                                                                      : at::kShort;
      tensors[info.name] =
          at::from_blob(const_cast<char*>(bytes.data()), info.shape, dtype).clone();
    }
  }
  return tensors;
}

class ReshardTest : public testing::Test {
 protected:
  ReshardTest() { MakeTinyData(folder_.path()); }

  TinyJob Job(const std::string& name, Gang gang, int64_t steps) {
    TinyJob job;
    job.folder = folder_.path();
    job.job_dir = folder_.path() + "/" + name;
    job.gang = gang;
    job.max_steps = steps;
    job.lr = 1e-3;
    return job;
  }

  // Trains to `steps` from the checkpoint; returns the last one's folder.
  std::string Train(const std::string& name, Gang gang, int64_t until, const std::string& from,
                    std::vector<StepFrame>* steps) {
    TinyJob job = Job(name, gang, kSteps);
    job.resume_from = from;
    const RunReport report =
        RunInThreads(job, [until](const StepFrame& step) { return step.step == until; });
    steps->insert(steps->end(), report.steps.begin(), report.steps.end());
    EXPECT_FALSE(report.checkpoints.empty());
    return report.checkpoints.empty() ? "" : report.checkpoints.back().path;
  }

  static constexpr int64_t kSteps = 16;
  TempFolder folder_;
};

TEST_F(ReshardTest, ChangingTheRanksAtEveryResumeKeepsTheLosses) {
  std::vector<StepFrame> wanted;
  const std::string whole = Train("whole", {1, 1, 1}, kSteps, "", &wanted);
  ASSERT_THAT(wanted, SizeIs(kSteps));
  struct Way {
    const char* name;
    std::vector<Gang> gangs;
  };
  for (const Way& way : {Way{"ranks", {{1, 1, 1}, {2, 1, 1}, {4, 1, 1}, {1, 1, 1}}},
                         Way{"experts", {{4, 1, 1}, {4, 1, 4}, {4, 1, 2}, {2, 1, 2}}}}) {
    std::vector<StepFrame> got;
    std::string checkpoint;
    for (size_t part = 0; part < way.gangs.size(); ++part) {
      const auto until = static_cast<int64_t>(4 * (part + 1));
      checkpoint = Train(absl::StrCat(way.name, part), way.gangs[part], until, checkpoint, &got);
    }
    ASSERT_THAT(got, SizeIs(kSteps)) << way.name;
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i].step, wanted[i].step);
      worst = std::max(worst, std::abs(got[i].loss - wanted[i].loss));
    }
    EXPECT_LT(worst, 1e-6) << way.name;
    // Weights and moments, tensor by tensor, relative to the largest value of each.
    const auto mine = Tensors(checkpoint), theirs = Tensors(whole);
    ASSERT_EQ(mine.size(), theirs.size());
    double furthest = 0;
    for (const auto& [name, tensor] : theirs) {
      const auto found = mine.find(name);
      ASSERT_NE(found, mine.end()) << name;
      ASSERT_EQ(found->second.sizes(), tensor.sizes()) << name;
      const double scale = tensor.abs().max().item<double>();
      const double difference = (found->second - tensor).abs().max().item<double>();
      furthest = std::max(furthest, difference / std::max(scale, 1e-12));
      EXPECT_LE(difference, 1e-4 * scale) << way.name << " " << name;
    }
    std::cout << way.name << ": losses within " << worst << ", tensors within " << furthest
              << " of their largest value, " << theirs.size() << " tensors\n";
  }
}

// Saving what was loaded on another gang writes the same bytes: nothing is computed on the way.
TEST_F(ReshardTest, ResumingAndSavingAtOnceOnAnotherGangChangesNoByte) {
  std::vector<StepFrame> steps;
  const std::string first = Train("first", {4, 1, 4}, 5, "", &steps);
  const auto wanted = Tensors(first);
  for (const Gang& gang : std::vector<Gang>{{1, 1, 1}, {2, 1, 2}, {4, 2, 2}, {4, 1, 1}}) {
    TinyJob job = Job(absl::StrCat("again-", gang.world, gang.replicate, gang.ep), gang, 5);
    job.resume_from = first;
    const RunReport report = RunInThreads(job);
    ASSERT_THAT(report.steps, SizeIs(0));
    ASSERT_THAT(report.checkpoints, SizeIs(1)) << "the final one is always written";
    const auto got = Tensors(report.checkpoints[0].path);
    ASSERT_EQ(got.size(), wanted.size());
    for (const auto& [name, tensor] : wanted) {
      EXPECT_TRUE(at::equal(got.at(name), tensor)) << name;
    }
  }
}

}  // namespace
}  // namespace switchyard
