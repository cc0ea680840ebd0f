// The real trainer as processes: killed again and again, or with a disk that fails under its
// checkpoints, it trains as if nothing had been.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/parallel/gang.h"
#include "worker/trainer/checkpoint/manifest.h"
#include "worker/trainer/checkpoint/or_throw.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// All files of a checkpoint but the manifest, which names the attempt.
std::map<std::string, std::string> Files(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const ManifestFile& file : OrThrow(ReadManifest(folder)).files) {
    files[file.name] = OrThrow(ReadFile(folder + "/" + file.name));
  }
  return files;
}

// What the service would resume from: the newest folder with a manifest. Empty: none.
std::string NewestCheckpoint(const std::string& job_dir) {
  std::string newest;
  int64_t newest_step = 0;
  if (!fs::exists(job_dir + "/staging")) return newest;
  for (const auto& attempt : fs::directory_iterator(job_dir + "/staging")) {
    for (const auto& folder : fs::directory_iterator(attempt.path())) {
      const auto manifest = ReadManifest(folder.path().string());
      if (!manifest.ok() || manifest->step <= newest_step) continue;
      newest_step = manifest->step;
      newest = folder.path().string();
    }
  }
  return newest;
}

// A file whose last line may be cut off.
std::vector<RankFrame> WholeFrames(const std::string& path) {
  const std::string text = ReadFile(path).value_or("");
  std::vector<RankFrame> frames;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    frames.push_back(
        OrThrow(ParseRankFrame(OrThrow(ParseJson(text.substr(begin, end - begin), "frame")))));
  }
  return frames;
}

struct KillCase {
  const char* name;
  Gang gang;
  const char* dtype;
  int kills;
  uint32_t seed;
};

class KillTest : public testing::TestWithParam<KillCase> {
 protected:
  TinyJob Job(const std::string& name) {
    TinyJob job = folder_.Job(name, GetParam().gang);
    job.max_steps = 40;
    job.every_steps = 3;
    job.dtype = GetParam().dtype;
    return job;
  }

  std::vector<std::unique_ptr<Process>> StartAll(TinyJob& job, int64_t attempt) {
    job.master_port = FreePort();
    job.resume_from = NewestCheckpoint(job.job_dir);
    std::vector<std::unique_ptr<Process>> ranks;
    for (int rank = 0; rank < job.gang.world; ++rank) {
      ConfigFrame frame = MakeFrame(job, rank);
      frame.attempt = attempt;
      ranks.push_back(folder_.Start(job, rank, frame));
    }
    return ranks;
  }

  GangFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(
    Gangs, KillTest,
    testing::Values(KillCase{"TwoRanks", {2, 1, 2}, "float32", 20, 1},
                    KillCase{"TwoShardsInBfloat16", {2, 1, 1}, "bfloat16", 4, 2},
                    KillCase{"FourRanks", {4, 1, 2}, "float32", 4, 3}),
    [](const testing::TestParamInfo<KillCase>& info) { return std::string(info.param.name); });

TEST_P(KillTest, KilledAtRandomMomentsItGivesTheSameBits) {
  TinyJob whole = Job("whole");
  const auto start = std::chrono::steady_clock::now();
  for (auto& rank : StartAll(whole, 1)) ASSERT_EQ(rank->Wait(), kExitDone);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const RunReport wanted = folder_.Report(whole);
  ASSERT_THAT(wanted.steps, SizeIs(40));
  const auto wanted_files = Files(NewestCheckpoint(whole.job_dir));

  std::mt19937 random(GetParam().seed);
  int kills = 0, resumed = 0, lives = 0;
  for (int run = 0; kills < GetParam().kills; ++run) {
    TinyJob job = Job(absl::StrCat("killed-", run));
    int64_t last = 0;
    for (int64_t attempt = 1;; ++attempt) {
      ASSERT_LT(++lives, 20 * GetParam().kills) << "no progress";
      std::vector<std::unique_ptr<Process>> ranks = StartAll(job, attempt);
      resumed += !job.resume_from.empty();
      if (kills < GetParam().kills) {
        // The moment of the fault; nothing waits for it.
        usleep(static_cast<useconds_t>(1e6 * seconds *
                                       std::uniform_real_distribution<double>(0.3, 1.0)(random)));
        const size_t victim = random() % ranks.size();
        ranks[victim]->Signal(SIGKILL);
        usleep(static_cast<useconds_t>(random() % 50'000));  // until the agent kills the others
        for (auto& rank : ranks) rank->Signal(SIGKILL);
      }
      bool killed = false;
      for (auto& rank : ranks) {
        const int code = rank->Wait();
        ASSERT_THAT(code, testing::AnyOf(kExitDone, kExitError, 128 + SIGKILL));
        killed |= code != kExitDone;
      }
      kills += killed;
      for (const RankFrame& frame : WholeFrames(folder_.Output(job, 0))) {
        if (const auto* step = std::get_if<StepFrame>(&frame)) {
          ASSERT_EQ(step->loss, wanted.steps.at(step->step - 1).loss)
              << "step " << step->step << " of attempt " << attempt << ", from '" << job.resume_from
              << "'";
          last = std::max(last, step->step);
        }
      }
      const std::string newest = NewestCheckpoint(job.job_dir);
      if (!newest.empty() && OrThrow(ReadManifest(newest)).final) break;
    }
    EXPECT_EQ(last, 40);
    EXPECT_TRUE(Files(NewestCheckpoint(job.job_dir)) == wanted_files) << "run " << run;
    fs::remove_all(job.job_dir);
  }
  std::cout << kills << " kills in " << lives << " lives, " << resumed << " resumed\n";
  EXPECT_GT(resumed, kills / 4) << "kills came too early to test anything";
}

// Ranks whose calls on some files fail, as if the disk did.
class FailingDiskTest : public testing::Test {
 protected:
  TinyJob Job(const std::string& name) {
    TinyJob job = folder_.Job(name, {2, 1, 2});
    job.every_steps = 4;
    return job;
  }

  // Runs two ranks; `rank`'s calls under `part` fail from number `at`. Their exit codes.
  std::vector<int> Run(const TinyJob& job, int failing_rank, const std::string& part,
                       const std::string& mode, int at = 1) {
    std::vector<std::unique_ptr<Process>> ranks;
    for (int rank = 0; rank < 2; ++rank) {
      if (rank == failing_rank) {
        setenv("LD_PRELOAD", FAILING_CALLS, 1);
        setenv("FAILING_CALLS_UNDER", part.c_str(), 1);
        setenv("FAILING_CALLS_MODE", mode.c_str(), 1);
        setenv("FAILING_CALLS_AT", absl::StrCat(at).c_str(), 1);
      }
      ranks.push_back(folder_.Start(job, rank));
      unsetenv("LD_PRELOAD");
      unsetenv("FAILING_CALLS_UNDER");
    }
    std::vector<int> codes;
    for (auto& rank : ranks) codes.push_back(rank->Wait());
    return codes;
  }

  std::vector<std::string> Warnings(const TinyJob& job, int rank) {
    std::vector<std::string> warnings;
    for (const RankFrame& frame : folder_.Frames(job, rank)) {
      if (const auto* warning = std::get_if<WarningFrame>(&frame)) {
        warnings.push_back(warning->message);
      }
    }
    return warnings;
  }

  static std::vector<int64_t> Steps(const RunReport& report) {
    std::vector<int64_t> steps;
    for (const CheckpointFrame& checkpoint : report.checkpoints) steps.push_back(checkpoint.step);
    return steps;
  }

  GangFolder folder_;
};

TEST_F(FailingDiskTest, AFailedWriteIsAWarningOfTheRankItHappenedToAndTrainingGoesOn) {
  const TinyJob healthy = Job("healthy");
  ASSERT_THAT(Run(healthy, -1, "", ""), Each(kExitDone));
  const RunReport wanted = folder_.Report(healthy);
  ASSERT_THAT(Steps(wanted), ElementsAre(4, 8, 12, 14));
  for (const int rank : {0, 1}) {
    for (const char* mode : {"eio", "enospc-on"}) {
      const TinyJob job = Job(absl::StrCat(mode, "-", rank));
      ASSERT_THAT(Run(job, rank, "/step-8/", mode, /*at=*/3), Each(kExitDone));
      const RunReport report = folder_.Report(job);
      EXPECT_EQ(report.Losses(), wanted.Losses());
      EXPECT_THAT(Steps(report), ElementsAre(4, 12, 14));
      EXPECT_EQ(report.steps.front().checkpoint_failures, 0);
      EXPECT_EQ(report.steps.back().checkpoint_failures, 1);
      EXPECT_FALSE(fs::exists(job.job_dir + "/staging/1/step-8")) << "what failed is removed";
      EXPECT_THAT(Warnings(job, 1 - rank), IsEmpty()) << "one word of it is enough";
      const std::vector<std::string> warnings = Warnings(job, rank);
      ASSERT_THAT(warnings, SizeIs(1));
      EXPECT_THAT(warnings[0], AllOf(HasSubstr("the checkpoint of step 8 was not written"),
                                     HasSubstr(job.job_dir + "/staging/1/step-8/")));
      if (std::string(mode) == "eio") {
        EXPECT_THAT(warnings[0], HasSubstr("Input/output error"));
      } else {
        EXPECT_THAT(warnings[0],
                    testing::ContainsRegex("No space left on device.*the checkpoint needs [0-9]+ "
                                           "bytes, [0-9]+ are free"));
      }
      EXPECT_EQ(Files(report.checkpoints.back().path), Files(wanted.checkpoints.back().path));
    }
  }
}

TEST_F(FailingDiskTest, TheLastCheckpointMustBeWritten) {
  for (const auto& [mode, reason] : {std::pair("eio", FailureReason::kStorageIo),
                                     std::pair("enospc", FailureReason::kDiskFull)}) {
    const TinyJob job = Job(mode);
    ASSERT_THAT(Run(job, 1, "/step-14/", mode), Each(kExitError));
    const ErrorFrame error = folder_.Error(job, 1);
    EXPECT_EQ(error.reason, reason) << error.message;
    EXPECT_THAT(error.message, HasSubstr("/step-14/"));
    EXPECT_THAT(Steps(folder_.Report(job)), ElementsAre(4, 8, 12));
  }
}

TEST_F(FailingDiskTest, ASlowWriteHoldsTheNextCheckpointBackAndNothingIsLost) {
  TinyJob job = Job("slow");
  job.every_steps = 1;
  job.max_steps = 6;
  ASSERT_THAT(Run(job, 0, "/step-2/", "slow", /*at=*/5), Each(kExitDone));
  const RunReport report = folder_.Report(job);
  EXPECT_THAT(Steps(report), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(report.phases, Contains("saving"));
  // Step 3 is computed and reported while 2 is written; 4 waits.
  ASSERT_THAT(report.steps, SizeIs(6));
  double stalled = 0;
  for (StepFrame step : report.steps) stalled += step.phase_seconds["checkpoint"];
  EXPECT_GT(stalled, 0.5);
  EXPECT_LT(report.steps[2].phase_seconds.at("checkpoint"), 0.5);
}

}  // namespace
}  // namespace switchyard
