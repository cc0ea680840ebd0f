// PushDispatcher against CollectiveDispatcher, bit for bit. Ranks are threads that share the GPUs
// there are, each with a stream of its own.
#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/parallel/comm_error.h"
#include "worker/trainer/parallel/in_process_comm.h"
#include "worker/trainer/parallel/push_dispatcher_test_support.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;

// Before the driver starts: one GPU may serve all streams of eight ranks.
const bool kManyQueues = setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*replace=*/0) == 0;

void Finish(at::Device device) { c10::cuda::getCurrentCUDAStream(device.index()).synchronize(); }

class DispatcherCudaTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(kManyQueues);
    if (c10::cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
  }

  using Body = std::function<void(int rank, at::Device device, Comm& ep)>;
  static void RunRanks(int ranks, const Body& body) {
    RunInProcess(ranks, absl::Seconds(60), [&](int rank, InProcessWorld& world) {
      const at::Device device(at::kCUDA,
                              static_cast<c10::DeviceIndex>(rank % c10::cuda::device_count()));
      const c10::StreamGuard guard(
          c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index()));
      const Comms comms = world.MakeComms(MakeMesh(ranks, rank, 1, ranks, 0).value());
      body(rank, device, comms[Axis::kEp]);
      Finish(device);
    });
  }
};
INSTANTIATE_TEST_SUITE_P(Ranks, DispatcherCudaTest, testing::Values(2, 4, 8),
                         testing::PrintToStringParamName());

TEST_P(DispatcherCudaTest, GivesTheBitsOfCollectives) {
  const int ranks = GetParam();
  RunRanks(ranks, [&](int rank, at::Device device, Comm& ep) {
    const PushOptions options = SmallPush(ranks, rank);
    const auto push = MakePush(ep, device, options);
    CollectiveDispatcher collective(ep, options.num_experts);
    const std::vector<int64_t> cases = {60 + 17 * rank, 0, rank == ranks - 1 ? 0 : rank + 1,
                                        options.max_tokens};
    for (int64_t hot : {int64_t{0}, options.top_k}) {
      for (int64_t tokens : cases) {
        for (int round = 0; round < 3; ++round) {
          ExpectSameBits(*push, collective,
                         DrawLayer(options, tokens, 100 * round + rank, device, hot),
                         absl::StrCat("round ", round, ", tokens ", tokens, ", hot ", hot));
        }
      }
    }
    EXPECT_FALSE(push->MustRepeat());
  });
}

TEST_P(DispatcherCudaTest, TwoTransfersOfAKindMayFlyAtATime) {
  const int ranks = GetParam();
  RunRanks(ranks, [&](int rank, at::Device device, Comm& ep) {
    const PushOptions options = SmallPush(ranks, rank);
    const auto push = MakePush(ep, device, options);
    CollectiveDispatcher collective(ep, options.num_experts);
    for (int round = 0; round < 20; ++round) {
      const LayerInput a = DrawLayer(options, 40 + rank, 7 * round + rank, device);
      const LayerInput b = DrawLayer(options, 90 - 5 * rank, 7 * round + rank + 1000, device);
      const auto plan_a = push->Plan(a.by_expert), plan_b = push->Plan(b.by_expert);
      auto first = push->BeginDispatch(*plan_a, a.x_TH, a.weights_TK);
      auto second = push->BeginDispatch(*plan_b, b.x_TH, b.weights_TK);
      const DispatchedRows rows_a = push->FinishDispatch(std::move(first));
      auto back_a = push->BeginCombine(*plan_a, rows_a.rows_NH, rows_a.weights_N.unsqueeze(0));
      auto third = push->BeginDispatch(*plan_a, a.x_TH, {});
      const DispatchedRows rows_b = push->FinishDispatch(std::move(second));
      auto back_b = push->BeginCombine(*plan_b, rows_b.rows_NH, {});
      const DispatchedRows rows_c = push->FinishDispatch(std::move(third));
      const CombinedRows sum_a = push->FinishCombine(std::move(back_a), a.x_TH);
      const CombinedRows sum_b = push->FinishCombine(std::move(back_b), {});

      const auto want_plan_a = collective.Plan(a.by_expert);
      const auto want_plan_b = collective.Plan(b.by_expert);
      const at::Tensor want_a = collective.Dispatch(*want_plan_a, a.x_TH, {}).rows_NH;
      const at::Tensor want_b = collective.Dispatch(*want_plan_b, b.x_TH, {}).rows_NH;
      EXPECT_TRUE(SameBits(rows_a.rows_NH.narrow(0, 0, want_a.size(0)), want_a)) << round;
      EXPECT_TRUE(SameBits(rows_c.rows_NH.narrow(0, 0, want_a.size(0)), want_a)) << round;
      EXPECT_TRUE(SameBits(sum_a.sum_TH, collective.Combine(*want_plan_a, want_a, a.x_TH)))
          << round;
      EXPECT_TRUE(SameBits(sum_a.dweights_TK, a.weights_TK)) << round;
      EXPECT_TRUE(SameBits(sum_b.sum_TH, collective.Combine(*want_plan_b, want_b, {}))) << round;
    }
    EXPECT_FALSE(push->MustRepeat());
  });
}

TEST_P(DispatcherCudaTest, ABudgetThatIsTooSmallGrowsOnAllRanks) {
  const int ranks = GetParam();
  RunRanks(ranks, [&](int rank, at::Device device, Comm& ep) {
    PushOptions options = SmallPush(ranks, rank);
    options.row_budget = 1;
    const auto push = MakePush(ep, device, options);
    CollectiveDispatcher collective(ep, options.num_experts);
    const int64_t first_budget = push->row_budget();
    // The first experts get everything, in one layer of three.
    const LayerInput hot = DrawLayer(options, options.max_tokens, 5 + rank, device, options.top_k);
    const LayerInput even = DrawLayer(options, options.max_tokens / 2, 6 + rank, device);
    const auto forward = [&] {
      for (const LayerInput* in : {&even, &hot, &even}) {
        const auto plan = push->Plan(in->by_expert);
        const DispatchedRows sent = push->Dispatch(*plan, in->x_TH, in->weights_TK);
        push->CombineGradients(*plan, sent.rows_NH, sent.weights_N.unsqueeze(0));
      }
    };
    forward();
    EXPECT_TRUE(push->MustRepeat());
    EXPECT_GT(push->row_budget(), first_budget);
    EXPECT_EQ(push->num_repeats(), 1);
    forward();
    EXPECT_FALSE(push->MustRepeat());
    EXPECT_FALSE(push->MustRepeat());  // nothing since
    ExpectSameBits(*push, collective, hot, "hot after growth");
    ExpectSameBits(*push, collective, even, "even after growth");
    EXPECT_EQ(push->num_repeats(), 1);
  });
}

// Launches everything once while ranks still meet before they wait.
void LoadKernels(Comm& ep, at::Device device, const PushOptions& options, const LayerInput& in) {
  const auto push = MakePush(ep, device, options);
  const auto plan = push->Plan(in.by_expert);
  push->Combine(*plan, push->Dispatch(*plan, in.x_TH, in.weights_TK).rows_NH, {});
}

// Rank 1 of the group, which errors call rank 41, takes part in `layers` whole layers and then, if
// `sends`, in the dispatch of one more. Returns this rank's error.
std::string ErrorWithoutRankOne(int ranks, int rank, at::Device device, Comm& ep, int layers,
                                bool sends) {
  PushOptions options = SmallPush(ranks, rank);
  options.timeout = absl::Seconds(1);
  for (int& name : options.ranks) name += 40;
  const LayerInput in = DrawLayer(options, 20, rank, device);
  LoadKernels(ep, device, options, in);
  options.before_waiting = [] {};
  const auto push = MakePush(ep, device, options);
  std::string error;
  std::unique_ptr<DispatchPlan> plan;
  try {
    for (int layer = 0; layer <= layers; ++layer) {
      const bool leaves = rank == 1 && layer == layers;
      if (leaves && !sends) break;
      plan = push->Plan(in.by_expert);
      const at::Tensor rows = push->Dispatch(*plan, in.x_TH, in.weights_TK).rows_NH;
      if (leaves) break;
      push->Combine(*plan, rows, {});
    }
    Finish(device);
    push->CheckHealth();
  } catch (const CommError& e) {
    error = e.what();
  }
  Finish(device);
  // Products on rows that never came follow no wild offsets.
  if (!sends && rank != 1) {
    EXPECT_EQ(plan->offsets_E1.abs().max().item<int>(), 0);
  }
  ep.Barrier();
  return error;
}

TEST_P(DispatcherCudaTest, ARankThatStaysAwayIsNamedByTheOthers) {
  const int ranks = GetParam();
  for (const bool sends : {false, true}) {
    std::vector<std::string> errors(ranks);
    const absl::Time start = absl::Now();
    RunRanks(ranks, [&](int rank, at::Device device, Comm& ep) {
      errors[rank] = ErrorWithoutRankOne(ranks, rank, device, ep, /*layers=*/1, sends);
    });
    EXPECT_LT(absl::Now() - start, absl::Seconds(10));
    int timed_out = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      if (rank == 1) continue;
      EXPECT_THAT(errors[rank],
                  AllOf(HasSubstr(absl::StrCat(": rank ", 40 + rank, " ")),
                        HasSubstr(sends ? "sums to combine in MoE layer 1"
                                        : "the counts of the exchange in MoE layer 1"),
                        AnyOf(HasSubstr("waited 1s for rank 41"), HasSubstr("has given up"))));
      timed_out += errors[rank].find("waited 1s for rank 41") != std::string::npos ? 1 : 0;
    }
    EXPECT_GE(timed_out, 1) << errors[0];
  }
}

TEST_P(DispatcherCudaTest, ARankThatThrowsLetsTheOthersEndAtOnce) {
  const int ranks = GetParam();
  std::vector<std::string> errors(ranks);
  RunRanks(ranks, [&](int rank, at::Device device, Comm& ep) {
    PushOptions options = SmallPush(ranks, rank);
    const LayerInput in = DrawLayer(options, 20, rank, device);
    LoadKernels(ep, device, options, in);
    options.before_waiting = [] {};
    const absl::Time start = absl::Now();
    try {
      const auto push = MakePush(ep, device, options);
      const auto plan = push->Plan(in.by_expert);
      const at::Tensor rows = push->Dispatch(*plan, in.x_TH, in.weights_TK).rows_NH;
      if (rank == 1) {
        auto pending = push->BeginDispatch(*plan, in.x_TH, {});
        push->FinishDispatch(std::move(pending));  // waits for ranks that never come
        throw std::runtime_error("out of something");
      }
      push->Combine(*plan, rows, {});
      Finish(device);
      push->CheckHealth();
    } catch (const std::runtime_error& e) {
      errors[rank] = e.what();
    }
    EXPECT_LT(absl::Now() - start, options.timeout / 4) << rank;
    Finish(device);
    ep.Barrier();
  });
  for (int rank = 0; rank < ranks; ++rank) {
    EXPECT_THAT(errors[rank], HasSubstr(rank == 1 ? "out of something" : "has given up"));
  }
}

}  // namespace
}  // namespace switchyard
