// The real switchyard-trainer on two GPUs, one process each, over NCCL and NVLink: the losses of
// one rank, the same bits in every run. Needs two GPUs of compute capability 9.0.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/parallel/gang.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

class GangCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count < 2) GTEST_SKIP() << "no GPU pair";
  }
  TinyJob Job(const std::string& name, Gang gang, const char* dtype) {
    TinyJob job = gangs_.Job(name, gang);
    job.device = "cuda";
    job.dtype = dtype;
    job.moment_dtype = dtype;
    job.max_steps = 20;
    job.lr = 3e-3;
    job.deterministic = true;
    return job;
  }
  RunReport Finished(const TinyJob& job) {
    const std::vector<int> codes = gangs_.Run(job);
    for (int rank = 0; rank < job.gang.world; ++rank) {
      EXPECT_EQ(codes[rank], 0) << job.job_dir << " rank " << rank << ": "
                                << gangs_.Error(job, rank).message;
    }
    return gangs_.Report(job);
  }
  GangFolder gangs_{/*for_kernels=*/true};
};

TEST_F(GangCudaTest, TwoProcessesFollowOneAndRepeatTheirBits) {
  struct Row {
    const char* dtype;
    double tolerance;  // of a step's loss; see trainer_cuda_test
  };
  for (const Row& row : {Row{"float32", 1e-4}, Row{"bfloat16", 0.03}}) {
    const RunReport one = Finished(Job(std::string(row.dtype) + "-1", {1, 1, 1}, row.dtype));
    ASSERT_THAT(one.steps, SizeIs(20));
    for (const Gang& gang : {Gang{2, 1, 2}, Gang{2, 1, 1}}) {
      const std::string name = std::string(row.dtype) + "-ep" + std::to_string(gang.ep);
      const TinyJob job = Job(name, gang, row.dtype);
      const RunReport two = Finished(job);
      ASSERT_THAT(two.steps, SizeIs(20)) << name;
      double largest = 0;
      for (size_t i = 0; i < one.steps.size(); ++i) {
        largest = std::max(largest, std::abs(two.steps[i].loss - one.steps[i].loss));
      }
      EXPECT_LE(largest, row.tolerance) << name;
      std::printf("%s: from one rank %.1e\n", name.c_str(), largest);
      if (gang.ep > 1 && job.dtype == "bfloat16") {
        std::stringstream log;
        log << std::ifstream(gangs_.Output(job, 0) + ".stderr").rdbuf();
        EXPECT_THAT(log.str(), HasSubstr("dispatcher kind=push")) << "rows went another way";
      }
      const RunReport again = Finished(Job(name + "-again", gang, row.dtype));
      EXPECT_EQ(again.Losses(), two.Losses()) << name;
      ASSERT_THAT(two.checkpoints, SizeIs(1));
      EXPECT_EQ(WeightBytes(again.checkpoints.at(0).path), WeightBytes(two.checkpoints[0].path))
          << name;
    }
  }
}

}  // namespace
}  // namespace switchyard
