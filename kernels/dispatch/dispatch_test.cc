// All ranks of a group as streams of this process; moved rows, sums and weights must have the
// reference's bits.
#include "kernels/dispatch/dispatch.h"

#include <gtest/gtest.h>

#include <cctype>
#include <string>

#include "kernels/dispatch/dispatch_ref.h"
#include "kernels/dispatch/dispatch_testing.h"

namespace switchyard::kernels {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr int kBlocks = 8;

// One rank's routing, plan and buffers of one transfer there and back.
struct Transfer {
  Transfer(const DispatchShape& shape, Routing routed, int64_t max_rows, Random& random)
      : routing(std::move(routed)),
        host_x(RepeatedBf16(routing.tokens * shape.hidden, 1.f, random)),
        host_weights(NormalFloats(routing.tokens * shape.top_k, 1.f, random)),
        row_of(routing.row_of),
        offsets(routing.offsets),
        words(DispatchPlanWords(shape, routing.tokens)),
        plan(DispatchPlanAt(shape, routing.tokens, max_rows, words.get())),
        x(host_x),
        rows(max_rows * shape.hidden),
        out(host_x.size()),
        weights(host_weights),
        row_weights(max_rows),
        copy_sums(host_weights.size()) {}

  Routing routing;
  std::vector<Bf16> host_x;
  std::vector<float> host_weights;
  DeviceArray<int32_t> row_of, offsets, words;
  DispatchPlanData plan;
  DeviceArray<Bf16> x, rows, out;
  DeviceArray<float> weights, row_weights, copy_sums;
};

// Each step on all ranks before the next, so that the tests also run under tools that
// serialize launches.
void MakePlans(const InProcessRanks& ranks, const std::vector<Transfer>& transfers) {
  for (int r = 0; r < ranks.size(); ++r) {
    const Transfer& t = transfers[r];
    ranks.Use(r);
    CudaOrDie(
        DispatchRoute({ranks.group(r), t.plan, t.row_of.get(), t.offsets.get()}, ranks.stream(r)),
        "route");
  }
  for (int r = 0; r < ranks.size(); ++r) {
    const Transfer& t = transfers[r];
    ranks.Use(r);
    CudaOrDie(DispatchExchange({ranks.group(r), t.plan, t.row_of.get(), t.offsets.get(), 3},
                               ranks.stream(r)),
              "exchange");
  }
}
void BeginDispatch(const InProcessRanks& ranks, const std::vector<Transfer>& transfers,
                   bool headers) {
  for (int r = 0; r < ranks.size(); ++r) {
    const Transfer& t = transfers[r];
    ranks.Use(r);
    ranks.Fork(r);
    CudaOrDie(DispatchPush({ranks.group(r), t.plan, t.x.get(), headers ? t.weights.get() : nullptr,
                            headers, kBlocks, 3},
                           ranks.push_stream(r)),
              "push");
  }
}
void FinishDispatch(const InProcessRanks& ranks, const std::vector<Transfer>& transfers,
                    bool headers) {
  for (int r = 0; r < ranks.size(); ++r) {
    const Transfer& t = transfers[r];
    ranks.Use(r);
    CudaOrDie(
        DispatchExpand({ranks.group(r), t.plan, t.x.get(), headers ? t.weights.get() : nullptr,
                        t.rows.get(), headers ? t.row_weights.get() : nullptr, headers, kBlocks, 3},
                       ranks.stream(r)),
        "expand");
    ranks.Join(r);
  }
}
// By rank; `row_partials` and `residuals` may be empty.
using Partials = std::vector<const float*>;
using Residuals = std::vector<const Bf16*>;
void BeginCombine(const InProcessRanks& ranks, const std::vector<Transfer>& transfers,
                  const Partials& row_partials, int num_partials) {
  for (int r = 0; r < ranks.size(); ++r) {
    const Transfer& t = transfers[r];
    ranks.Use(r);
    ranks.Fork(r);
    CudaOrDie(
        CombinePush({ranks.group(r), t.plan, t.rows.get(),
                     row_partials.empty() ? nullptr : row_partials[r], num_partials, kBlocks, 3},
                    ranks.push_stream(r)),
        "combine push");
  }
}
void FinishCombine(const InProcessRanks& ranks, const std::vector<Transfer>& transfers,
                   const Partials& row_partials, int num_partials, const Residuals& residuals) {
  for (int r = 0; r < ranks.size(); ++r) {
    const Transfer& t = transfers[r];
    ranks.Use(r);
    CudaOrDie(CombineReduce({ranks.group(r), t.plan, t.rows.get(),
                             row_partials.empty() ? nullptr : row_partials[r], num_partials,
                             residuals.empty() ? nullptr : residuals[r], t.out.get(),
                             row_partials.empty() ? nullptr : t.copy_sums.get(), kBlocks, 3},
                            ranks.stream(r)),
              "combine reduce");
    ranks.Join(r);
  }
}

std::vector<Transfer> MakeTransfers(const InProcessRanks& ranks, const DispatchShape& shape,
                                    const std::vector<int64_t>& tokens, Spread spread,
                                    int64_t max_rows, Random& random) {
  std::vector<Transfer> transfers;
  for (int r = 0; r < shape.ranks; ++r) {
    ranks.Use(r);
    transfers.emplace_back(shape, RandomRouting(shape, tokens[r], spread, random), max_rows,
                           random);
  }
  return transfers;
}

DispatchPlanRef PlanRef(const DispatchShape& shape, const std::vector<Transfer>& transfers,
                        int64_t max_rows) {
  std::vector<RankRouting> routings;
  for (const Transfer& t : transfers) routings.push_back(t.routing.View());
  return PlanDispatchRef(shape, routings, max_rows);
}

template <class T>
std::vector<const T*> Pointers(const std::vector<std::vector<T>>& vectors) {
  std::vector<const T*> pointers;
  for (const auto& v : vectors) pointers.push_back(v.data());
  return pointers;
}
template <class T>
std::vector<T*> MutablePointers(std::vector<std::vector<T>>& vectors) {
  std::vector<T*> pointers;
  for (auto& v : vectors) pointers.push_back(v.data());
  return pointers;
}
template <class T>
std::vector<std::vector<T>> PoisonedVectors(const std::vector<size_t>& sizes) {
  std::vector<std::vector<T>> vectors;
  for (const size_t size : sizes) vectors.push_back(Poisoned<T>(size));
  return vectors;
}

void ExpectNoErrors(const InProcessRanks& ranks) {
  for (int r = 0; r < ranks.size(); ++r) {
    const DispatchError error = ranks.error(r);
    EXPECT_EQ(error.failure, DispatchFailure::kNone)
        << "rank " << r << " peer " << error.peer << " phase " << static_cast<int>(error.phase)
        << " round " << error.round;
  }
}

void ExpectRows(const DispatchPlanRef& ref, const std::vector<Transfer>& transfers,
                bool with_weights) {
  std::vector<const Bf16*> x;
  std::vector<const float*> weights;
  std::vector<size_t> row_sizes, weight_sizes;
  for (const Transfer& t : transfers) {
    x.push_back(t.host_x.data());
    if (with_weights) weights.push_back(t.host_weights.data());
    row_sizes.push_back(t.rows.size());
    weight_sizes.push_back(t.row_weights.size());
  }
  auto rows = PoisonedVectors<Bf16>(row_sizes);
  auto row_weights = PoisonedVectors<float>(weight_sizes);
  DispatchRowsRef(ref, x, weights, MutablePointers(rows), MutablePointers(row_weights));
  for (size_t r = 0; r < transfers.size(); ++r) {
    EXPECT_EQ(BitDifference(transfers[r].rows.Download(), rows[r]), "") << "rows of rank " << r;
    if (!with_weights) continue;
    EXPECT_EQ(BitDifference(transfers[r].row_weights.Download(), row_weights[r]), "")
        << "weights of rank " << r;
  }
}

void ExpectPlans(const DispatchPlanRef& ref, const std::vector<Transfer>& transfers) {
  const int local = ref.shape.experts / ref.shape.ranks;
  for (size_t r = 0; r < transfers.size(); ++r) {
    const DeviceArray<int32_t>& words = transfers[r].words;
    const auto download = [&](const int32_t* from, int count) {
      return words.Download(from - words.get(), count);
    };
    EXPECT_EQ(download(transfers[r].plan.offsets, local + 1), ref.offsets[r]) << "rank " << r;
    EXPECT_EQ(download(transfers[r].plan.needed_rows, 1)[0], ref.needed_rows) << "rank " << r;
  }
}

class DispatchTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { AskForQueues(); }
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

struct Case {
  std::string name;
  int ranks, experts, top_k, hidden;
  std::vector<int64_t> tokens;
  Spread spread;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class DispatchCases : public DispatchTest, public ::testing::WithParamInterface<Case> {};

// Forward with weights and a residual, then the backward with the plan replayed and gradients of
// the weights, with other data.
TEST_P(DispatchCases, HasTheBitsOfTheReference) {
  const Case& c = GetParam();
  Random random(5);
  const DispatchShape shape{c.ranks, c.experts, c.top_k, c.hidden,
                            *std::max_element(c.tokens.begin(), c.tokens.end())};
  InProcessRanks ranks(shape, 20 * kSecond);
  int64_t copies = 0;
  for (const int64_t t : c.tokens) copies += t * c.top_k;
  // Room for the fullest rank, but not for what no spread fills.
  const int64_t max_rows = c.spread == Spread::kUniform ? copies / c.ranks * 3 / 2 + 64 : copies;
  std::vector<Transfer> forward = MakeTransfers(ranks, shape, c.tokens, c.spread, max_rows, random);
  const DispatchPlanRef ref = PlanRef(shape, forward, max_rows);
  ASSERT_LE(ref.needed_rows, max_rows);

  const int num_partials = 3;
  std::vector<std::vector<Bf16>> outs, rows, residuals;
  std::vector<std::vector<float>> partials, sums;
  std::vector<DeviceArray<Bf16>> device_rows, device_residuals;
  std::vector<DeviceArray<float>> device_partials;
  Residuals residual_pointers;
  Partials partial_pointers;
  for (int r = 0; r < c.ranks; ++r) {
    ranks.Use(r);
    outs.push_back(Poisoned<Bf16>(forward[r].out.size()));
    sums.push_back(Poisoned<float>(forward[r].copy_sums.size()));
    rows.push_back(RepeatedBf16(max_rows * c.hidden, 1.f, random));
    residuals.push_back(RepeatedBf16(c.tokens[r] * c.hidden, 1.f, random));
    partials.push_back(NormalFloats(num_partials * max_rows, 1.f, random));
    device_residuals.emplace_back(residuals[r]);
    device_partials.emplace_back(partials[r]);
    residual_pointers.push_back(device_residuals[r].get());
    partial_pointers.push_back(device_partials[r].get());
  }
  ranks.Synchronize();

  MakePlans(ranks, forward);
  BeginDispatch(ranks, forward, true);
  FinishDispatch(ranks, forward, true);
  ranks.Synchronize();
  ExpectNoErrors(ranks);
  ExpectPlans(ref, forward);
  ExpectRows(ref, forward, true);

  for (int r = 0; r < c.ranks; ++r) {
    ranks.Use(r);
    forward[r].rows.Upload(rows[r]);
  }
  ranks.Synchronize();
  BeginCombine(ranks, forward, {}, 0);
  FinishCombine(ranks, forward, {}, 0, residual_pointers);
  ranks.Synchronize();
  CombineRowsRef(ref, Pointers(rows), Pointers(residuals), MutablePointers(outs));
  for (int r = 0; r < c.ranks; ++r) {
    EXPECT_EQ(BitDifference(forward[r].out.Download(), outs[r]), "") << "sums of rank " << r;
  }

  // Backward: no headers, the plan knows the rows.
  for (int r = 0; r < c.ranks; ++r) {
    ranks.Use(r);
    forward[r].host_x = RepeatedBf16(forward[r].host_x.size(), 2.f, random);
    forward[r].x.Upload(forward[r].host_x);
    forward[r].rows.Upload(Poisoned<Bf16>(forward[r].rows.size()));
    forward[r].out.Upload(Poisoned<Bf16>(forward[r].out.size()));
  }
  ranks.Synchronize();
  BeginDispatch(ranks, forward, false);
  FinishDispatch(ranks, forward, false);
  ranks.Synchronize();
  ExpectRows(ref, forward, false);
  for (int r = 0; r < c.ranks; ++r) {
    ranks.Use(r);
    forward[r].rows.Upload(rows[r]);
  }
  ranks.Synchronize();
  BeginCombine(ranks, forward, partial_pointers, num_partials);
  FinishCombine(ranks, forward, partial_pointers, num_partials, {});
  ranks.Synchronize();
  CombineRowsRef(ref, Pointers(rows), {}, MutablePointers(outs));
  CombinePartialsRef(ref, Pointers(partials), num_partials, MutablePointers(sums));
  for (int r = 0; r < c.ranks; ++r) {
    EXPECT_EQ(BitDifference(forward[r].out.Download(), outs[r]), "") << "sums of rank " << r;
    EXPECT_EQ(BitDifference(forward[r].copy_sums.Download(), sums[r]), "") << "rank " << r;
  }
  ExpectNoErrors(ranks);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, DispatchCases,
    ::testing::Values(
        Case{"two ranks", 2, 8, 2, 64, {37, 300}, Spread::kUniform},
        Case{"four ranks, one without tokens", 4, 16, 4, 128, {70, 0, 513, 1}, Spread::kUniform},
        Case{"only one rank has a token", 4, 16, 3, 64, {0, 0, 1, 0}, Spread::kUniform},
        Case{"no tokens", 2, 4, 1, 64, {0, 0}, Spread::kUniform},
        Case{"one rank", 1, 8, 2, 64, {100}, Spread::kUniform},
        Case{"all to one expert", 4, 8, 1, 256, {200, 31, 0, 77}, Spread::kOneExpert},
        Case{
            "one expert of all", 8, 64, 8, 64, {90, 90, 5, 90, 300, 1, 90, 90}, Spread::kOneExpert},
        Case{"an unused rank", 4, 16, 4, 72, {100, 256, 257, 3}, Spread::kLastRankUnused},
        Case{"skewed", 8, 128, 8, 512, {255, 256, 257, 700, 64, 33, 32, 31}, Spread::kSkewed},
        Case{"512 experts, 16 of them",
             8,
             512,
             16,
             64,
             {64, 64, 0, 65, 64, 64, 64, 63},
             Spread::kUniform},
        Case{"hidden 7168", 4, 32, 4, 7168, {33, 64, 7, 20}, Spread::kUniform},
        Case{"hidden 16384", 2, 8, 2, 16384, {9, 14}, Spread::kUniform},
        Case{"hidden 8", 2, 8, 2, 8, {50, 14}, Spread::kUniform},
        Case{"hidden 2048", 2, 128, 8, 2048, {1000, 777}, Spread::kUniform},
        Case{"4095 tokens",
             8,
             128,
             8,
             64,
             {4095, 4095, 4095, 4095, 0, 4095, 1, 4095},
             Spread::kUniform},
        Case{"8192 tokens", 4, 128, 8, 128, {8192, 8192, 8192, 8192}, Spread::kUniform}),
    [](const auto& info) {
      std::string name;  // letters and digits only
      bool starts_word = true;
      for (const char c : info.param.name) {
        if (std::isalnum(c)) name += starts_word ? static_cast<char>(std::toupper(c)) : c;
        starts_word = !std::isalnum(c);
      }
      return name;
    });

// Both begin before either finishes, with plans of their own.
TEST_F(DispatchTest, TwoTransfersAreInFlight) {
  Random random(6);
  const DispatchShape shape{4, 16, 4, 256, 300};
  InProcessRanks ranks(shape, 20 * kSecond);
  const int64_t max_rows = 3000;
  std::vector<Transfer> a =
      MakeTransfers(ranks, shape, {300, 17, 0, 150}, Spread::kUniform, max_rows, random);
  std::vector<Transfer> b =
      MakeTransfers(ranks, shape, {1, 300, 80, 222}, Spread::kSkewed, max_rows, random);
  const DispatchPlanRef ref_a = PlanRef(shape, a, max_rows), ref_b = PlanRef(shape, b, max_rows);
  ranks.Synchronize();
  for (int repeat = 0; repeat < 3; ++repeat) {
    MakePlans(ranks, a);
    BeginDispatch(ranks, a, true);
    MakePlans(ranks, b);
    BeginDispatch(ranks, b, true);
    FinishDispatch(ranks, a, true);
    FinishDispatch(ranks, b, true);
    BeginCombine(ranks, a, {}, 0);
    BeginCombine(ranks, b, {}, 0);
    FinishCombine(ranks, a, {}, 0, {});
    FinishCombine(ranks, b, {}, 0, {});
    ranks.Synchronize();
    ExpectNoErrors(ranks);
    for (const auto* transfers : {&a, &b}) {
      const DispatchPlanRef& ref = transfers == &a ? ref_a : ref_b;
      ExpectRows(ref, *transfers, true);
      std::vector<std::vector<Bf16>> rows, outs;
      for (const Transfer& t : *transfers) {
        rows.push_back(t.rows.Download());
        outs.push_back(Poisoned<Bf16>(t.out.size()));
      }
      CombineRowsRef(ref, Pointers(rows), {}, MutablePointers(outs));
      for (int r = 0; r < shape.ranks; ++r) {
        EXPECT_EQ(BitDifference((*transfers)[r].out.Download(), outs[r]), "") << "rank " << r;
      }
    }
  }
}

// What does not fit is skipped, on both ways; every rank says how many rows it would have taken.
TEST_F(DispatchTest, SkipsRowsBeyondTheBudget) {
  Random random(7);
  const DispatchShape shape{4, 8, 2, 128, 200};
  InProcessRanks ranks(shape, 20 * kSecond);
  const int64_t max_rows = 300;
  std::vector<Transfer> transfers =
      MakeTransfers(ranks, shape, {200, 150, 199, 0}, Spread::kOneExpert, max_rows, random);
  const DispatchPlanRef ref = PlanRef(shape, transfers, max_rows);
  ASSERT_GT(ref.needed_rows, max_rows);
  Partials row_weights;
  for (const Transfer& t : transfers) row_weights.push_back(t.row_weights.get());
  ranks.Synchronize();
  for (const bool headers : {true, false}) {
    if (headers) MakePlans(ranks, transfers);
    BeginDispatch(ranks, transfers, headers);
    FinishDispatch(ranks, transfers, headers);
    BeginCombine(ranks, transfers, row_weights, 1);
    FinishCombine(ranks, transfers, row_weights, 1, {});
    ranks.Synchronize();
    ExpectNoErrors(ranks);
    ExpectPlans(ref, transfers);
    ExpectRows(ref, transfers, headers);
    std::vector<std::vector<Bf16>> rows, outs;
    std::vector<std::vector<float>> partials, sums;
    for (const Transfer& t : transfers) {
      rows.push_back(t.rows.Download());
      outs.push_back(Poisoned<Bf16>(t.out.size()));
      partials.push_back(t.row_weights.Download());
      sums.push_back(Poisoned<float>(t.copy_sums.size()));
    }
    CombineRowsRef(ref, Pointers(rows), {}, MutablePointers(outs));
    CombinePartialsRef(ref, Pointers(partials), 1, MutablePointers(sums));
    for (int r = 0; r < shape.ranks; ++r) {
      EXPECT_EQ(BitDifference(transfers[r].out.Download(), outs[r]), "") << "rank " << r;
      EXPECT_EQ(BitDifference(transfers[r].copy_sums.Download(), sums[r]), "") << "rank " << r;
    }
  }
}

TEST_F(DispatchTest, RefusesWhatItCannotDo) {
  DispatchRouteParams p{};
  p.group.shape = {3, 8, 2, 64, 10};
  EXPECT_EQ(DispatchRoute(p, nullptr), cudaErrorInvalidValue);  // 3 does not divide 8
  p.group.shape = {2, 8, 2, 12, 10};
  EXPECT_EQ(DispatchRoute(p, nullptr), cudaErrorInvalidValue);
  p.group.shape = {2, 8, 17, 64, 10};
  EXPECT_EQ(DispatchRoute(p, nullptr), cudaErrorInvalidValue);
  p.group.shape = {2, 8, 2, 64, 10};
  p.plan.tokens = 11;
  EXPECT_EQ(DispatchRoute(p, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace switchyard::kernels
