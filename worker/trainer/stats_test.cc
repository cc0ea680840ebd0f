// stats and failure: small, but what users and the service see first.
#include "worker/trainer/stats.h"

#include <ATen/ATen.h>

#include <new>
#include <stdexcept>

#include "base/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/control.h"
#include "worker/trainer/failure.h"
#include "worker/trainer/parallel/comm_error.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::Pair;

TEST(StatsTest, ExpertLoadIsTheWorstLayersLargestOverMean) {
  const at::Tensor copies = at::tensor({5, 5, 5, 5, 12, 4, 0, 0}, at::kLong).view({2, 4});
  EXPECT_DOUBLE_EQ(ExpertLoadMaxOverMean(copies), 3.0);
  EXPECT_DOUBLE_EQ(ExpertLoadMaxOverMean(copies.narrow(0, 0, 1)), 1.0);
}

TEST(StatsTest, ExpertLoadOfNothingIsZero) {
  EXPECT_EQ(ExpertLoadMaxOverMean(at::Tensor()), 0.0);
  EXPECT_EQ(ExpertLoadMaxOverMean(at::zeros({0, 4}, at::kLong)), 0.0) << "no MoE layer";
  EXPECT_EQ(ExpertLoadMaxOverMean(at::zeros({2, 4}, at::kLong)), 0.0) << "no token";
}

TEST(StatsTest, PhasesAddUpToTheTotal) {
  SimClock clock;
  PhaseTimer timer(clock);
  clock.Advance(absl::Seconds(1));
  timer.Lap("data");
  clock.Advance(absl::Seconds(2));
  timer.Lap("forward_backward");
  clock.Advance(absl::Seconds(4));
  timer.Lap("data");
  EXPECT_THAT(timer.seconds(), ElementsAre(Pair("data", 5.0), Pair("forward_backward", 2.0)));
  EXPECT_DOUBLE_EQ(timer.total_seconds(), 7.0);
}

TEST(StatsTest, PeakMemoryGrowsWithAnAllocation) {
  const int64_t before = PeakHostMemoryBytes();
  const at::Tensor block = at::ones({before / 4 + (64 << 20)}, at::kFloat);  // touched
  EXPECT_GE(PeakHostMemoryBytes(), before + (64 << 20));
}

TEST(FailureTest, ExceptionsBecomeReasons) {
  EXPECT_EQ(DescribeFailure(TrainError(FailureReason::kNanLoss, "x")).reason,
            FailureReason::kNanLoss);
  EXPECT_EQ(DescribeFailure(CommError("lost a peer")).reason, FailureReason::kNcclError);
  EXPECT_EQ(DescribeFailure(std::bad_alloc()).reason, FailureReason::kOomHost);
  EXPECT_EQ(DescribeFailure(std::runtime_error("x")).reason, FailureReason::kInternal);
}

TEST(FailureTest, TorchsAllocatorFailingIsOutOfHostMemoryWithoutAStackTrace) {
  try {
    at::empty({int64_t{1} << 55}, at::kByte);
    FAIL() << "32 PiB were allocated";
  } catch (const std::exception& e) {
    const ErrorFrame frame = DescribeFailure(e);
    EXPECT_EQ(frame.reason, FailureReason::kOomHost) << frame.message;
    EXPECT_THAT(frame.message, Not(HasSubstr("frame #0")));
  }
}

TEST(FailureTest, AStorageFaultIsNotBlamedOnTheInput) {
  const auto reason = [](absl::Status status) {
    try {
      Blame(FailureReason::kDataInvalid, [&] { OrThrow(status); });
    } catch (const TrainError& e) {
      return e.reason();
    }
    return FailureReason::kNone;
  };
  EXPECT_EQ(reason(absl::InvalidArgumentError("x")), FailureReason::kDataInvalid);
  EXPECT_EQ(reason(absl::NotFoundError("x")), FailureReason::kDataInvalid);
  EXPECT_EQ(reason(absl::DataLossError("x")), FailureReason::kDataInvalid);
  EXPECT_EQ(reason(absl::UnavailableError("x")), FailureReason::kStorageIo);
  EXPECT_EQ(reason(absl::ResourceExhaustedError("x")), FailureReason::kDiskFull);
}

TEST(ControlTest, OnceForbiddenTheCheckpointStaysForbidden) {
  Control control;
  EXPECT_FALSE(control.stop().stop);
  control.RequestStop(true);
  EXPECT_TRUE(control.stop().checkpoint);
  control.RequestStop(false);
  control.RequestStop(true);
  EXPECT_TRUE(control.stop().stop);
  EXPECT_FALSE(control.stop().checkpoint);
}

TEST(ControlTest, ResultsAreTakenByStepAndOnce) {
  Control control;
  control.AddCheckpointResult({7, true, "/c", ""});
  EXPECT_FALSE(control.TakeCheckpointResult(6, absl::ZeroDuration()).has_value());
  EXPECT_TRUE(control.TakeCheckpointResult(7, absl::ZeroDuration()).has_value());
  EXPECT_FALSE(control.TakeCheckpointResult(7, absl::ZeroDuration()).has_value());
}

}  // namespace
}  // namespace switchyard
