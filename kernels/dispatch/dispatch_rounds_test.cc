// Many rounds, in streams and in graphs, and peers that fail. Data is a pattern that changes every
// round, so that rows of another round or token show; it is checked on the device.
#include <gtest/gtest.h>

#include <chrono>

#include "kernels/dispatch/dispatch.h"
#include "kernels/dispatch/dispatch_testing.h"

namespace switchyard::kernels {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr int kBlocks = 4;
constexpr int kNumRoutings = 16;

// One rank's buffers for round trips whose expected result is known without a reference: the
// token's row times top_k, and the routing weights.
struct RoundTrip {
  RoundTrip(const DispatchShape& shape, int own_rank, int64_t num_tokens, int64_t max_rows,
            Random& random)
      : rank(own_rank),
        tokens(num_tokens),
        row_of(num_tokens * shape.top_k),
        offsets(shape.experts + 1),
        words(DispatchPlanWords(shape, num_tokens)),
        plan(DispatchPlanAt(shape, num_tokens, max_rows, words.get())),
        x(num_tokens * shape.hidden),
        rows(max_rows * shape.hidden),
        out(num_tokens * shape.hidden),
        weights(num_tokens * shape.top_k),
        row_weights(max_rows),
        copy_sums(num_tokens * shape.top_k),
        tick(std::vector<uint32_t>(1, 0)),
        errors(std::vector<uint32_t>(1, 0)) {
    constexpr Spread kSpreads[] = {Spread::kUniform, Spread::kSkewed, Spread::kOneExpert,
                                   Spread::kLastRankUnused};
    for (int i = 0; i < kNumRoutings; ++i) {
      const Routing routing = RandomRouting(shape, num_tokens, kSpreads[i % 4], random);
      routed_rows.emplace_back(routing.row_of);
      routed_offsets.emplace_back(routing.offsets);
    }
    pattern = {tick.get(), rank, x.get(), weights.get(), tokens, shape.hidden, shape.top_k};
  }

  int rank;
  int64_t tokens;
  DeviceArray<int32_t> row_of, offsets, words;
  DispatchPlanData plan;
  DeviceArray<Bf16> x, rows, out;
  DeviceArray<float> weights, row_weights, copy_sums;
  DeviceArray<uint32_t> tick, errors;
  std::vector<DeviceArray<int32_t>> routed_rows, routed_offsets;
  PatternParams pattern{};
};

void UseRouting(const InProcessRanks& ranks, RoundTrip& t, int i) {
  const cudaStream_t stream = ranks.stream(t.rank);
  ranks.Use(t.rank);
  if (t.tokens > 0) {
    CudaOrDie(cudaMemcpyAsync(t.row_of.get(), t.routed_rows[i].get(), t.row_of.bytes(),
                              cudaMemcpyDefault, stream),
              "routing");
  }
  CudaOrDie(cudaMemcpyAsync(t.offsets.get(), t.routed_offsets[i].get(), t.offsets.bytes(),
                            cudaMemcpyDefault, stream),
            "routing");
}

void EnqueueBegin(const InProcessRanks& ranks, const RoundTrip& t, int layer) {
  const cudaStream_t stream = ranks.stream(t.rank);
  const DispatchGroup group = ranks.group(t.rank);
  ranks.Use(t.rank);
  LaunchFill(t.pattern, stream);
  CudaOrDie(DispatchRoute({group, t.plan, t.row_of.get(), t.offsets.get()}, stream), "route");
  CudaOrDie(DispatchExchange({group, t.plan, t.row_of.get(), t.offsets.get(), layer}, stream),
            "exchange");
  ranks.Fork(t.rank);
  CudaOrDie(DispatchPush({group, t.plan, t.x.get(), t.weights.get(), true, kBlocks, layer},
                         ranks.push_stream(t.rank)),
            "push");
}
void EnqueueExpand(const InProcessRanks& ranks, const RoundTrip& t, int layer) {
  ranks.Use(t.rank);
  CudaOrDie(DispatchExpand({ranks.group(t.rank), t.plan, t.x.get(), t.weights.get(), t.rows.get(),
                            t.row_weights.get(), true, kBlocks, layer},
                           ranks.stream(t.rank)),
            "expand");
}
void EnqueueCombinePush(const InProcessRanks& ranks, const RoundTrip& t, int layer) {
  ranks.Use(t.rank);
  ranks.Fork(t.rank);
  CudaOrDie(CombinePush(
                {ranks.group(t.rank), t.plan, t.rows.get(), t.row_weights.get(), 1, kBlocks, layer},
                ranks.push_stream(t.rank)),
            "combine push");
}
void EnqueueReduce(const InProcessRanks& ranks, const RoundTrip& t, int layer) {
  ranks.Use(t.rank);
  CudaOrDie(CombineReduce({ranks.group(t.rank), t.plan, t.rows.get(), t.row_weights.get(), 1,
                           nullptr, t.out.get(), t.copy_sums.get(), kBlocks, layer},
                          ranks.stream(t.rank)),
            "combine reduce");
  ranks.Join(t.rank);
  LaunchCheck(t.pattern, t.out.get(), t.copy_sums.get(), t.errors.get(), ranks.stream(t.rank));
}

std::vector<RoundTrip> MakeRoundTrips(const InProcessRanks& ranks, const DispatchShape& shape,
                                      const std::vector<int64_t>& tokens, Random& random) {
  int64_t copies = 0;
  for (const int64_t t : tokens) copies += t * shape.top_k;
  std::vector<RoundTrip> trips;
  for (int r = 0; r < shape.ranks; ++r) {
    ranks.Use(r);
    trips.emplace_back(shape, r, tokens[r], copies, random);
    UseRouting(ranks, trips.back(), 0);
  }
  ranks.Synchronize();
  return trips;
}

void ExpectRight(const InProcessRanks& ranks, const std::vector<RoundTrip>& trips,
                 uint32_t rounds) {
  ranks.Synchronize();
  for (const RoundTrip& t : trips) {
    const DispatchError error = ranks.error(t.rank);
    EXPECT_EQ(error.failure, DispatchFailure::kNone)
        << "rank " << t.rank << " peer " << error.peer << " phase " << static_cast<int>(error.phase)
        << " round " << error.round;
    EXPECT_EQ(t.tick.Download()[0], rounds);
    EXPECT_EQ(t.errors.Download()[0], 0u) << "wrong values on rank " << t.rank;
  }
}

class DispatchRoundsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { AskForQueues(); }
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

// Two transfers are in flight at a time; each rank is held up at random places. Tags pass 2^32 on
// the way.
TEST_F(DispatchRoundsTest, TenThousandRoundsWithDelays) {
  constexpr int kPairs = 5000;
  Random random(8);
  const DispatchShape shape{4, 16, 4, 64, 40};
  InProcessRanks ranks(shape, 20 * kSecond);
  ranks.StartAtRound(0xfffff000u);
  std::vector<RoundTrip> a = MakeRoundTrips(ranks, shape, {16, 40, 0, 27}, random);
  std::vector<RoundTrip> b = MakeRoundTrips(ranks, shape, {33, 1, 40, 8}, random);
  const auto maybe_delay = [&](cudaStream_t stream) {
    if (random() % 8 == 0) LaunchDelay(random() % 30'000, stream);
  };
  for (int pair = 0; pair < kPairs; ++pair) {
    const int routing = static_cast<int>(random() % kNumRoutings);
    for (int r = 0; r < shape.ranks; ++r) {
      ranks.Use(r);
      UseRouting(ranks, a[r], routing);
      UseRouting(ranks, b[r], (routing + 5) % kNumRoutings);
      maybe_delay(ranks.stream(r));
      EnqueueBegin(ranks, a[r], pair);
      maybe_delay(ranks.push_stream(r));
      EnqueueBegin(ranks, b[r], pair);
      maybe_delay(ranks.stream(r));
      EnqueueExpand(ranks, a[r], pair);
      maybe_delay(ranks.stream(r));
      EnqueueExpand(ranks, b[r], pair);
      maybe_delay(ranks.push_stream(r));
      EnqueueCombinePush(ranks, a[r], pair);
      EnqueueCombinePush(ranks, b[r], pair);
      maybe_delay(ranks.stream(r));
      EnqueueReduce(ranks, a[r], pair);
      maybe_delay(ranks.stream(r));
      EnqueueReduce(ranks, b[r], pair);
    }
  }
  ExpectRight(ranks, a, kPairs);
  ExpectRight(ranks, b, kPairs);
}

TEST_F(DispatchRoundsTest, EightRanksRepeat) {
  constexpr int kRounds = 500;
  Random random(9);
  const DispatchShape shape{8, 64, 8, 256, 300};
  InProcessRanks ranks(shape, 20 * kSecond);
  std::vector<RoundTrip> trips =
      MakeRoundTrips(ranks, shape, {300, 256, 0, 1, 299, 64, 128, 31}, random);
  for (int round = 0; round < kRounds; ++round) {
    for (int r = 0; r < shape.ranks; ++r) {
      ranks.Use(r);
      UseRouting(ranks, trips[r], round % kNumRoutings);
      if (random() % 4 == 0) LaunchDelay(random() % 50'000, ranks.stream(r));
      EnqueueBegin(ranks, trips[r], round);
      EnqueueExpand(ranks, trips[r], round);
      EnqueueCombinePush(ranks, trips[r], round);
      EnqueueReduce(ranks, trips[r], round);
    }
  }
  ExpectRight(ranks, trips, kRounds);
}

// A round trip is captured once; the routing changes under it.
TEST_F(DispatchRoundsTest, ThousandGraphReplays) {
  constexpr int kReplays = 1000;
  Random random(10);
  const DispatchShape shape{4, 32, 8, 128, 200};
  InProcessRanks ranks(shape, 20 * kSecond);
  std::vector<RoundTrip> trips = MakeRoundTrips(ranks, shape, {200, 0, 133, 64}, random);
  std::vector<cudaGraphExec_t> graphs(shape.ranks);
  for (int r = 0; r < shape.ranks; ++r) {
    ranks.Use(r);
    CudaOrDie(cudaStreamBeginCapture(ranks.stream(r), cudaStreamCaptureModeThreadLocal), "capture");
    EnqueueBegin(ranks, trips[r], 0);
    EnqueueExpand(ranks, trips[r], 0);
    EnqueueCombinePush(ranks, trips[r], 0);
    EnqueueReduce(ranks, trips[r], 0);
    cudaGraph_t graph;
    CudaOrDie(cudaStreamEndCapture(ranks.stream(r), &graph), "capture");
    CudaOrDie(cudaGraphInstantiate(&graphs[r], graph, 0), "graph");
    CudaOrDie(cudaGraphUpload(graphs[r], ranks.stream(r)), "graph");
    CudaOrDie(cudaGraphDestroy(graph), "graph");
  }
  ranks.Synchronize();
  for (int replay = 0; replay < kReplays; ++replay) {
    for (int r = 0; r < shape.ranks; ++r) {
      UseRouting(ranks, trips[r], replay % kNumRoutings);
      CudaOrDie(cudaGraphLaunch(graphs[r], ranks.stream(r)), "graph");
    }
  }
  ExpectRight(ranks, trips, kReplays);
  for (const cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
}

// Where rank 2 of 4 stops taking part.
enum class Absent { kAlways, kBeforePush, kBeforeCombinePush };

struct AbsentCase {
  const char* name;
  Absent from;
  DispatchPhase phase;
};

class DispatchAbsentPeer : public DispatchRoundsTest,
                           public ::testing::WithParamInterface<AbsentCase> {};

// Rank 0 is the first to lose patience; the others learn it from its abort.
TEST_P(DispatchAbsentPeer, IsNamedInTimeAndEndsAll) {
  constexpr int kAbsent = 2, kLayer = 17;
  Random random(11);
  const DispatchShape shape{4, 16, 4, 64, 40};
  InProcessRanks ranks(shape, 30 * kSecond);
  ranks.SetTimeout(0, kSecond / 20);
  std::vector<RoundTrip> trips = MakeRoundTrips(ranks, shape, {16, 40, 9, 27}, random);
  const auto start = std::chrono::steady_clock::now();
  const auto takes_part = [&](int rank, Absent step) {
    return rank != kAbsent || static_cast<int>(GetParam().from) > static_cast<int>(step);
  };
  // Several rounds: what follows a failure must return at once.
  for (int round = 0; round < 3; ++round) {
    for (int r = 0; r < shape.ranks; ++r) {
      ranks.Use(r);
      if (!takes_part(r, Absent::kAlways) || (r == kAbsent && round > 0)) continue;
      const RoundTrip& t = trips[r];
      const DispatchGroup group = ranks.group(r);
      LaunchFill(t.pattern, ranks.stream(r));
      CudaOrDie(DispatchRoute({group, t.plan, t.row_of.get(), t.offsets.get()}, ranks.stream(r)),
                "route");
      CudaOrDie(DispatchExchange({group, t.plan, t.row_of.get(), t.offsets.get(), kLayer},
                                 ranks.stream(r)),
                "exchange");
      if (!takes_part(r, Absent::kBeforePush)) continue;
      ranks.Fork(r);
      CudaOrDie(DispatchPush({group, t.plan, t.x.get(), t.weights.get(), true, kBlocks, kLayer},
                             ranks.push_stream(r)),
                "push");
      EnqueueExpand(ranks, t, kLayer);
      if (!takes_part(r, Absent::kBeforeCombinePush)) continue;
      EnqueueCombinePush(ranks, t, kLayer);
      EnqueueReduce(ranks, t, kLayer);
    }
  }
  ranks.Synchronize();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  const DispatchError first = ranks.error(0);
  EXPECT_EQ(first.failure, DispatchFailure::kTimeout);
  EXPECT_EQ(first.rank, 0);
  EXPECT_EQ(first.peer, kAbsent);
  EXPECT_EQ(first.phase, GetParam().phase);
  EXPECT_EQ(first.layer, kLayer);
  EXPECT_EQ(first.round, 1u);
  for (const int r : {1, 3}) {
    const DispatchError error = ranks.error(r);
    EXPECT_EQ(error.failure, DispatchFailure::kPeerAborted) << "rank " << r;
    EXPECT_EQ(error.rank, r);
    EXPECT_EQ(error.peer, 0);
    EXPECT_EQ(error.phase, GetParam().phase);
    EXPECT_EQ(error.layer, kLayer);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Phases, DispatchAbsentPeer,
    ::testing::Values(AbsentCase{"Always", Absent::kAlways, DispatchPhase::kExchange},
                      AbsentCase{"BeforePush", Absent::kBeforePush,
                                 DispatchPhase::kDispatchArrival},
                      AbsentCase{"BeforeCombinePush", Absent::kBeforeCombinePush,
                                 DispatchPhase::kCombineArrival}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace switchyard::kernels
