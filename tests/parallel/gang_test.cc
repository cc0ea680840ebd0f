// The real switchyard-trainer as processes that talk over Gloo: the same bits as ranks that are
// threads, and what a gang does when it is stopped, misled or loses a member.
#include "tests/parallel/gang.h"

#include <signal.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/parallel/tiny_job.h"
#include "worker/link/frame.h"
#include "worker/trainer/checkpoint/or_throw.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

class GangTest : public testing::Test {
 protected:
  GangFolder gangs_;
};

TEST_F(GangTest, ProcessesOverGlooGiveTheBitsOfThreads) {
  for (const Gang& gang : std::vector<Gang>{{1, 1, 1}, {2, 1, 1}, {2, 1, 2}, {4, 1, 2}}) {
    const std::string name = absl::StrCat(gang.world, "x", gang.ep);
    const TinyJob processes = gangs_.Job("processes-" + name, gang);
    ASSERT_THAT(gangs_.Run(processes), testing::Each(0)) << name;
    const RunReport gloo = gangs_.Report(processes);
    const RunReport threads = RunInThreads(gangs_.Job("threads-" + name, gang));
    ASSERT_THAT(gloo.steps, SizeIs(14));
    EXPECT_EQ(gloo.Losses(), threads.Losses()) << name;
    ASSERT_THAT(gloo.checkpoints, SizeIs(1));
    const std::string weights = WeightBytes(gloo.checkpoints[0].path);
    EXPECT_GT(weights.size(), 10000u);
    EXPECT_EQ(weights, WeightBytes(threads.checkpoints.at(0).path)) << name;
  }
}

// A rank under an agent that the test plays.
struct Linked {
  std::unique_ptr<FrameChannel> agent;
  std::unique_ptr<Process> process;
  // Frames until one of type T; all are kept.
  template <typename T>
  T Await(std::vector<RankFrame>* frames) {
    while (true) {
      frames->push_back(OrThrow(ParseRankFrame(OrThrow(agent->Receive(absl::Seconds(60))))));
      if (const T* wanted = std::get_if<T>(&frames->back())) return *wanted;
      if (const auto* error = std::get_if<ErrorFrame>(&frames->back())) {
        throw std::runtime_error("the rank failed: " + error->message);
      }
    }
  }
  void Send(const AgentFrame& frame) { OrThrow(agent->Send(ToJson(frame))); }
};

class LinkTest : public GangTest {
 protected:
  Linked StartLinked(const TinyJob& job, int rank) {
    SocketPair pair = OrThrow(MakeSocketPair());
    Linked linked;
    linked.process = std::make_unique<Process>(std::vector<std::string>{"--link-fd", "3"},
                                               gangs_.Output(job, rank), std::move(pair.second));
    linked.agent = std::make_unique<FrameChannel>(std::move(pair.first));
    linked.Send(MakeFrame(job, rank));
    return linked;
  }
};

TEST_F(LinkTest, AStopFrameToOneRankStopsAllAfterTheStepWithACheckpoint) {
  TinyJob job = gangs_.Job("stop", {2, 1, 2});
  job.max_steps = 1000000;
  Linked zero = StartLinked(job, 0), one = StartLinked(job, 1);
  std::vector<RankFrame> frames, others;
  zero.Await<StepFrame>(&frames);
  one.Send(StopFrame{"cancelled by a user", true});
  const CheckpointFrame checkpoint = zero.Await<CheckpointFrame>(&frames);
  zero.Send(CheckpointResultFrame{checkpoint.step, true, "/committed", ""});
  const DoneFrame done = zero.Await<DoneFrame>(&frames);
  const DoneFrame other = one.Await<DoneFrame>(&others);
  EXPECT_TRUE(done.stopped);
  EXPECT_TRUE(other.stopped);
  EXPECT_EQ(done.step, other.step);
  EXPECT_EQ(done.step, checkpoint.step);
  EXPECT_EQ(zero.process->Wait(), kExitStopped);
  EXPECT_EQ(one.process->Wait(), kExitStopped);
  EXPECT_TRUE(std::filesystem::exists(checkpoint.path + "/switchyard/manifest.json"));
  const auto* hello = std::get_if<HelloFrame>(&frames.front());
  ASSERT_NE(hello, nullptr) << "hello comes first";
}

TEST_F(LinkTest, ASignalStopsWithACheckpointToo) {
  TinyJob job = gangs_.Job("signal");
  job.max_steps = 1000000;
  Linked rank = StartLinked(job, 0);
  std::vector<RankFrame> frames;
  rank.Await<StepFrame>(&frames);
  rank.process->Signal(SIGTERM);
  const CheckpointFrame checkpoint = rank.Await<CheckpointFrame>(&frames);
  rank.Send(CheckpointResultFrame{checkpoint.step, true, "/committed", ""});
  EXPECT_TRUE(rank.Await<DoneFrame>(&frames).stopped);
  EXPECT_EQ(rank.process->Wait(), kExitStopped);
}

TEST_F(LinkTest, AClosedLinkStopsTheGangWithoutACheckpoint) {
  TinyJob job = gangs_.Job("closed", {2, 1, 1});
  job.max_steps = 1000000;
  Linked zero = StartLinked(job, 0), one = StartLinked(job, 1);
  std::vector<RankFrame> frames;
  zero.Await<StepFrame>(&frames);
  one.agent.reset();
  EXPECT_TRUE(zero.Await<DoneFrame>(&frames).stopped);
  EXPECT_EQ(zero.process->Wait(), kExitStopped);
  EXPECT_EQ(one.process->Wait(), kExitStopped);
  EXPECT_FALSE(std::filesystem::exists(job.job_dir + "/staging"));
}

TEST_F(LinkTest, ARefusedFinalCheckpointFailsTheGang) {
  TinyJob job = gangs_.Job("refused", {2, 1, 2});
  job.max_steps = 2;
  Linked zero = StartLinked(job, 0), one = StartLinked(job, 1);
  std::vector<RankFrame> frames;
  const CheckpointFrame checkpoint = zero.Await<CheckpointFrame>(&frames);
  EXPECT_TRUE(checkpoint.final);
  zero.Send(CheckpointResultFrame{checkpoint.step, false, "", "fenced by attempt 2"});
  EXPECT_THROW(
      {
        try {
          zero.Await<DoneFrame>(&frames);
        } catch (const std::runtime_error& e) {
          EXPECT_THAT(e.what(), HasSubstr("fenced by attempt 2"));
          throw;
        }
      },
      std::runtime_error);
  EXPECT_EQ(zero.process->Wait(), kExitError);
  EXPECT_EQ(one.process->Wait(), kExitError);
}

TEST_F(LinkTest, ALostRankIsAnErrorOnTheOthersAtOnce) {
  TinyJob job = gangs_.Job("lost", {2, 1, 2});
  job.max_steps = 1000000;
  Linked zero = StartLinked(job, 0), one = StartLinked(job, 1);
  std::vector<RankFrame> frames;
  zero.Await<StepFrame>(&frames);
  one.process->Signal(SIGKILL);
  EXPECT_EQ(one.process->Wait(), 128 + SIGKILL);
  const ErrorFrame error = zero.Await<ErrorFrame>(&frames);
  EXPECT_EQ(zero.process->Wait(), kExitError);
  EXPECT_EQ(error.reason, FailureReason::kNcclError);
  EXPECT_GT(error.step, 0);
  EXPECT_THAT(error.message, AllOf(HasSubstr("over ranks 0,1 on rank 0"), HasSubstr("lost a peer"),
                                   HasSubstr("by peer")));
}

TEST_F(GangTest, BadInputsAreNamedWithTheirReason) {
  struct Row {
    const char* name;
    std::function<void(ConfigFrame&)> spoil;
    FailureReason reason;
    const char* message;
  };
  std::ofstream(gangs_.path() + "/broken.tok")
      << "not a token file at all, but long enough to read";
  const std::vector<Row> rows = {
      {"model", [](ConfigFrame& f) { f.job["model"]["path"] = "/nowhere"; },
       FailureReason::kConfigInvalid, "/nowhere"},
      {"lr", [](ConfigFrame& f) { f.job["optimizer"]["beta1"] = 1.5; },
       FailureReason::kConfigInvalid, "beta1 is 1.5"},
      {"ep", [](ConfigFrame& f) { f.job["parallel"]["ep_size"] = 2; },
       FailureReason::kConfigInvalid, "ep_size 2 does not divide the 1 ranks"},
      {"device", [](ConfigFrame& f) { f.device = "cuda:0"; }, FailureReason::kConfigInvalid,
       "\"cuda:0\""},
      {"tokens", [&](ConfigFrame& f) { f.train_tokens = gangs_.path() + "/broken.tok"; },
       FailureReason::kDataInvalid, "broken.tok"},
      {"weights", [](ConfigFrame& f) { f.job["model"]["random_init"] = false; },
       FailureReason::kCheckpointInvalid, "model.safetensors"},
      {"resume", [](ConfigFrame& f) { f.resume_from = "/nowhere/step-3"; },
       FailureReason::kCheckpointInvalid, "/nowhere/step-3"},
  };
  for (const Row& row : rows) {
    const TinyJob job = gangs_.Job(row.name);
    ConfigFrame frame = MakeFrame(job, 0);
    row.spoil(frame);
    EXPECT_EQ(gangs_.Start(job, 0, frame)->Wait(), kExitError) << row.name;
    const ErrorFrame error = gangs_.Error(job, 0);
    EXPECT_EQ(error.reason, row.reason) << row.name << ": " << error.message;
    EXPECT_THAT(error.message, HasSubstr(row.message)) << row.name;
  }
}

TEST_F(GangTest, TheCommandLineIsChecked) {
  const std::string output = gangs_.path() + "/usage.out";
  EXPECT_EQ(Process({"--confg", "x"}, output).Wait(), 2);
  EXPECT_EQ(Process({}, output).Wait(), 2);
  EXPECT_EQ(Process({"--help"}, output).Wait(), 0);
}

}  // namespace
}  // namespace switchyard
