#include "worker/agent/failure.h"

#include <signal.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

RankEnd Exit(int rank, int code) {
  RankEnd end;
  end.rank = rank;
  end.status.code = code;
  return end;
}

RankEnd Signal(int rank, int signal) {
  RankEnd end;
  end.rank = rank;
  end.status.signal = signal;
  return end;
}

RankEnd Error(int rank, FailureReason reason) {
  RankEnd end = Exit(rank, kExitError);
  end.error = ErrorFrame{reason, "what happened", 12};
  return end;
}

RankEnd Done(int rank, int code) {
  RankEnd end = Exit(rank, code);
  end.done = DoneFrame{10, code == kExitStopped};
  return end;
}

TEST(FailureTest, OnlyAnnouncedEndsAreNoFailures) {
  EXPECT_FALSE(IsFailure(Done(0, kExitDone), false));
  EXPECT_FALSE(IsFailure(Done(0, kExitDone), true));
  EXPECT_FALSE(IsFailure(Done(0, kExitStopped), true));
  EXPECT_TRUE(IsFailure(Done(0, kExitStopped), false));
  EXPECT_TRUE(IsFailure(Exit(0, kExitDone), false));
  EXPECT_TRUE(IsFailure(Exit(0, kExitStopped), true));
  EXPECT_TRUE(IsFailure(Exit(0, 7), false));
  EXPECT_TRUE(IsFailure(Signal(0, SIGTERM), true));
}

TEST(FailureTest, CauseComesBeforeCascade) {
  const RankEnd cascade = Error(0, FailureReason::kNcclError);
  EXPECT_EQ(FirstFailure({cascade, Signal(1, SIGKILL)}), 1u);
  EXPECT_EQ(FirstFailure({cascade, Error(1, FailureReason::kNanLoss)}), 1u);
  EXPECT_EQ(FirstFailure({cascade, Exit(1, 7)}), 1u);
  EXPECT_EQ(FirstFailure({Exit(0, 7), Error(1, FailureReason::kDiskFull)}), 1u);
  EXPECT_EQ(FirstFailure({Exit(0, 7), Signal(1, SIGSEGV)}), 1u);
  EXPECT_EQ(FirstFailure({Exit(2, 7), Exit(1, 7), Exit(3, 7)}), 1u);
}

TEST(FailureTest, DescribesEachKindOfEnd) {
  RankEnd end = Exit(3, 7);
  end.last_lines = {"a", "b"};
  end.step = 5;
  v1::Failure failure = DescribeRankFailure(end, "n1");
  EXPECT_EQ(failure.reason(), v1::TRAINER_EXIT);
  EXPECT_EQ(failure.message(), "rank 3 on node n1 ended with exit code 7");
  EXPECT_EQ(failure.rank(), 3);
  EXPECT_EQ(failure.node(), "n1");
  EXPECT_EQ(failure.exit_code(), 7);
  EXPECT_EQ(failure.step(), 5);
  EXPECT_THAT(failure.last_lines(), ElementsAre("a", "b"));

  failure = DescribeRankFailure(Signal(1, SIGSEGV), "n1");
  EXPECT_EQ(failure.reason(), v1::TRAINER_SIGNAL);
  EXPECT_EQ(failure.signal(), SIGSEGV);
  EXPECT_THAT(failure.message(), HasSubstr("signal 11 (Segmentation fault)"));

  failure = DescribeRankFailure(Error(0, FailureReason::kNanLoss), "n1");
  EXPECT_EQ(failure.reason(), v1::NAN_LOSS);
  EXPECT_EQ(failure.message(), "rank 0 on node n1: what happened");
  EXPECT_EQ(failure.step(), 12);

  EXPECT_EQ(DescribeRankFailure(Error(0, FailureReason::kNone), "n1").reason(), v1::TRAINER_EXIT);
  EXPECT_EQ(DescribeRankFailure(Exit(0, 0), "n1").reason(), v1::EXIT_UNKNOWN);
  failure = DescribeRankFailure(Done(0, kExitStopped), "n1");
  EXPECT_EQ(failure.reason(), v1::TRAINER_EXIT);
  EXPECT_THAT(failure.message(), HasSubstr("nobody had asked"));
}

TEST(FailureTest, OomIsSeenOnlyInAKillWhileTheKernelKilled) {
  RankEnd end = Signal(0, SIGKILL);
  EXPECT_EQ(DescribeRankFailure(end, "n").reason(), v1::TRAINER_SIGNAL);
  end.oom_kill_seen = true;
  EXPECT_EQ(DescribeRankFailure(end, "n").reason(), v1::OOM_HOST);
  end.status.signal = SIGSEGV;
  EXPECT_EQ(DescribeRankFailure(end, "n").reason(), v1::TRAINER_SIGNAL);
}

TEST(FailureTest, PrepExitCodesBecomeReasons) {
  const std::pair<ExitStatus, v1::FailureReason> cases[] = {
      {{1, 0}, v1::DATA_INVALID},
      {{2, 0}, v1::CONFIG_INVALID},
      {{70, 0}, v1::INTERNAL},
      {{0, SIGSEGV}, v1::TRAINER_SIGNAL},
  };
  for (const auto& [status, reason] : cases) {
    const v1::Failure failure = DescribePrepFailure(status, {"x", "d.jsonl:3: bad"}, false, "n1");
    EXPECT_EQ(failure.reason(), reason);
    EXPECT_EQ(failure.rank(), -1);
    EXPECT_THAT(failure.message(), HasSubstr("d.jsonl:3: bad"));
    EXPECT_THAT(failure.last_lines(), ElementsAre("x", "d.jsonl:3: bad"));
  }
  EXPECT_EQ(DescribePrepFailure({0, SIGKILL}, {}, true, "n1").reason(), v1::OOM_HOST);
}

TEST(FailureTest, ReasonsAreTheProtos) {
  EXPECT_EQ(v1::FailureReason_ARRAYSIZE, static_cast<int>(AllFailureReasons().size()));
  for (const FailureReason reason : AllFailureReasons()) {
    EXPECT_EQ(v1::FailureReason_Name(static_cast<v1::FailureReason>(reason)), Name(reason));
  }
}

}  // namespace
}  // namespace switchyard
