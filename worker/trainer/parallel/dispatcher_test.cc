// CollectiveDispatcher over 1, 2 and 4 ranks against a loop over all ranks' token copies.
#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/ops/permute.h"
#include "worker/trainer/parallel/collective_dispatcher.h"
#include "worker/trainer/parallel/dispatcher_choice.h"
#include "worker/trainer/parallel/in_process_comm.h"
#include "worker/trainer/parallel/local_dispatcher.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr int64_t kExperts = 8, kHidden = 3, kTopK = 2;

// The routing of every rank of one case: ids[rank] is [tokens, kTopK].
using Routing = std::vector<at::Tensor>;

at::Tensor RandomIds(int64_t tokens, int seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return std::get<1>(at::rand({tokens, kExperts}, generator, at::kFloat).topk(kTopK, 1));
}

struct Case {
  std::string name;
  Routing ids;
};

std::vector<Case> Cases(int ranks) {
  std::vector<Case> cases(4);
  cases[0].name = "ragged";
  cases[1].name = "no tokens anywhere";
  cases[2].name = "one rank without tokens";
  cases[3].name = "all to two experts";
  for (int r = 0; r < ranks; ++r) {
    cases[0].ids.push_back(RandomIds(5 + 3 * r, 10 + r));
    cases[1].ids.push_back(at::zeros({0, kTopK}, at::kLong));
    cases[2].ids.push_back(r == ranks - 1 ? at::zeros({0, kTopK}, at::kLong)
                                          : RandomIds(6, 20 + r));
    cases[3].ids.push_back(at::tensor({5, 4}, at::kLong).repeat({4, 1}));
  }
  return cases;
}

ops::Permutation ByExpert(const at::Tensor& ids) { return ops::MakePermutation(ids, kExperts); }

// Row of token t of rank r: distinct small integers, so that movement and sums are exact.
at::Tensor Rows(int rank, int64_t tokens) {
  return at::arange(tokens * kHidden, at::kFloat).view({tokens, kHidden}) + 100.0 * (rank + 1);
}

struct Copy {
  int rank;
  int64_t token, k;
};

// What rank `me` must receive, by the contract: by local expert, source rank, token, k.
std::vector<Copy> ExpectedCopies(const Routing& ids, int me, std::vector<int64_t>* per_expert) {
  const int ranks = static_cast<int>(ids.size());
  const int64_t local = kExperts / ranks;
  std::vector<Copy> copies;
  for (int64_t e = me * local; e < (me + 1) * local; ++e) {
    const size_t before = copies.size();
    for (int r = 0; r < ranks; ++r) {
      for (int64_t t = 0; t < ids[r].size(0); ++t) {
        for (int64_t k = 0; k < kTopK; ++k) {
          if (ids[r][t][k].item<int64_t>() == e) copies.push_back({r, t, k});
        }
      }
    }
    per_expert->push_back(static_cast<int64_t>(copies.size() - before));
  }
  return copies;
}

class DispatcherTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, DispatcherTest, testing::Values(1, 2, 4),
                         testing::PrintToStringParamName());

TEST_P(DispatcherTest, RowsArriveByExpertRankTokenAndK) {
  const int ranks = GetParam();
  for (const Case& c : Cases(ranks)) {
    RunInProcess(ranks, absl::Seconds(30), [&](int rank, InProcessWorld& world) {
      const Comms comms = world.MakeComms(MakeMesh(ranks, rank, 1, ranks, kExperts).value());
      CollectiveDispatcher dispatcher(comms[Axis::kEp], kExperts);
      const int64_t tokens = c.ids[rank].size(0);
      std::vector<int64_t> per_expert;
      const std::vector<Copy> copies = ExpectedCopies(c.ids, rank, &per_expert);

      const auto plan = dispatcher.Plan(ByExpert(c.ids[rank]));
      ASSERT_EQ(plan->num_tokens, tokens) << c.name;
      ASSERT_EQ(plan->num_rows, static_cast<int64_t>(copies.size())) << c.name;
      ASSERT_EQ(ops::RowsPerExpert(plan->offsets_E1), per_expert) << c.name;

      const at::Tensor weights =
          at::arange(tokens * kTopK, at::kFloat).view({tokens, kTopK}) + 1000.0 * rank;
      const DispatchedRows sent = dispatcher.Dispatch(*plan, Rows(rank, tokens), weights);
      const at::Tensor rows = sent.rows_NH, scalars = sent.weights_N;
      ASSERT_EQ(rows.size(0), plan->num_rows);
      for (size_t n = 0; n < copies.size(); ++n) {
        const auto [r, t, k] = copies[n];
        ASSERT_TRUE(at::equal(rows[n], Rows(r, c.ids[r].size(0))[t])) << c.name << " row " << n;
        ASSERT_EQ(scalars[n].item<float>(), 1000.0f * r + t * kTopK + k) << c.name;
      }
      // Partial sums of 1/4 and 3/4 of a weight: exact.
      const at::Tensor parts = at::stack({scalars * 0.25, scalars * 0.75});
      const CombinedRows back = dispatcher.CombineGradients(*plan, rows, parts);
      ASSERT_TRUE(at::equal(back.dweights_TK, weights)) << c.name;
      ASSERT_TRUE(at::equal(back.sum_TH, kTopK * Rows(rank, tokens))) << c.name;
    });
  }
}

TEST_P(DispatcherTest, CombineSumsEachTokensRows) {
  const int ranks = GetParam();
  for (const Case& c : Cases(ranks)) {
    RunInProcess(ranks, absl::Seconds(30), [&](int rank, InProcessWorld& world) {
      const Comms comms = world.MakeComms(MakeMesh(ranks, rank, 1, ranks, kExperts).value());
      CollectiveDispatcher dispatcher(comms[Axis::kEp], kExperts);
      const at::Tensor x = Rows(rank, c.ids[rank].size(0));
      const auto plan = dispatcher.Plan(ByExpert(c.ids[rank]));
      // Each local expert multiplies by its global number plus one.
      at::Tensor rows = dispatcher.Dispatch(*plan, x, {}).rows_NH;
      const std::vector<int64_t> rows_per_expert = ops::RowsPerExpert(plan->offsets_E1);
      int64_t row = 0;
      const int64_t local = kExperts / ranks;
      for (int64_t e = 0; e < local; ++e) {
        rows.narrow(0, row, rows_per_expert[e]).mul_(rank * local + e + 1);
        row += rows_per_expert[e];
      }
      const at::Tensor factor = (c.ids[rank] + 1).sum(1, /*keepdim=*/true).to(at::kFloat);
      ASSERT_TRUE(at::equal(dispatcher.Combine(*plan, rows, {}), x * factor)) << c.name;
      ASSERT_TRUE(at::equal(dispatcher.Combine(*plan, rows, x), x * (factor + 1))) << c.name;
    });
  }
}

TEST(CollectiveDispatcherTest, OneRankGivesTheBitsOfLocalDispatcher) {
  RunInProcess(1, absl::Seconds(30), [](int rank, InProcessWorld& world) {
    const Comms comms = world.MakeComms(MakeMesh(1, rank, 1, 1, kExperts).value());
    CollectiveDispatcher collective(comms[Axis::kEp], kExperts);
    LocalDispatcher local(kExperts);
    for (const Case& c : Cases(1)) {
      for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        at::Generator generator = at::detail::createCPUGenerator(5);
        const int64_t tokens = c.ids[0].size(0);
        const at::Tensor x = at::randn({tokens, kHidden}, generator, at::kFloat).to(type);
        const auto plan = collective.Plan(ByExpert(c.ids[0]));
        const auto local_plan = local.Plan(ByExpert(c.ids[0]));
        ASSERT_TRUE(at::equal(plan->offsets_E1, local_plan->offsets_E1)) << c.name;
        const at::Tensor s = at::randn({tokens, kTopK}, generator, at::kFloat);
        const DispatchedRows sent = collective.Dispatch(*plan, x, s);
        const DispatchedRows local_sent = local.Dispatch(*local_plan, x, s);
        const at::Tensor rows = sent.rows_NH;
        ASSERT_TRUE(at::equal(rows, local_sent.rows_NH)) << c.name;
        ASSERT_TRUE(at::equal(sent.weights_N, local_sent.weights_N)) << c.name;
        const at::Tensor results = at::randn(rows.sizes(), generator, at::kFloat).to(type);
        // With a residual the local one rounds once, the collective one twice.
        const at::Tensor residual = type == at::kFloat ? x : at::Tensor();
        ASSERT_TRUE(at::equal(collective.Combine(*plan, results, residual),
                              local.Combine(*local_plan, results, residual)))
            << c.name;
        const at::Tensor parts = at::stack({sent.weights_N, sent.weights_N * 0.1});
        const CombinedRows back = collective.CombineGradients(*plan, results, parts);
        const CombinedRows local_back = local.CombineGradients(*local_plan, results, parts);
        ASSERT_TRUE(at::equal(back.sum_TH, local_back.sum_TH)) << c.name;
        ASSERT_TRUE(at::equal(back.dweights_TK, local_back.dweights_TK)) << c.name;
      }
    }
  });
}

TEST(CollectiveDispatcherTest, ARanksPartOfASumIsRoundedOnce) {
  // 256 + 1 + 1: bf16 additions one by one would stay at 256.
  RunInProcess(1, absl::Seconds(30), [](int rank, InProcessWorld& world) {
    const Comms comms = world.MakeComms(MakeMesh(1, rank, 1, 1, 3).value());
    CollectiveDispatcher dispatcher(comms[Axis::kEp], 3);
    const auto plan =
        dispatcher.Plan(ops::MakePermutation(at::tensor({0, 1, 2}, at::kLong).view({1, 3}), 3));
    const at::Tensor rows = at::tensor({256.0f, 1.0f, 1.0f}).view({3, 1}).to(at::kBFloat16);
    ASSERT_EQ(dispatcher.Combine(*plan, rows, {}).item<float>(), 258.0f);
  });
}

TEST(CollectiveDispatcherTest, SumsOfRanksAreRoundedBeforeTheyAreAdded) {
  // Experts 0-3 lie on rank 0. There 256 + 1 + 0 + 0 is 257, rounded to even 256; with rank 1's 1
  // and the residual's 1 it is 258. One sum of all would be 259, rounded to 260.
  RunInProcess(2, absl::Seconds(30), [](int rank, InProcessWorld& world) {
    const Comms comms = world.MakeComms(MakeMesh(2, rank, 1, 2, 4).value());
    CollectiveDispatcher dispatcher(comms[Axis::kEp], 4);
    const auto plan =
        dispatcher.Plan(ops::MakePermutation(at::tensor({2, 1, 0}, at::kLong).view({1, 3}), 4));
    // Rows: on rank 0 expert 0 then 1, of both ranks; on rank 1 expert 2.
    const at::Tensor rows =
        rank == 0 ? at::tensor({256.0f, 256.0f, 1.0f, 1.0f}) : at::tensor({1.0f, 1.0f});
    const at::Tensor one = at::ones({1, 1}, at::kBFloat16);
    EXPECT_EQ(dispatcher.Combine(*plan, rows.unsqueeze(1).to(at::kBFloat16), one).item<float>(),
              258.0f);
  });
}

TEST(CollectiveDispatcherTest, TransfersMayOverlapAndFinishInTheirOrder) {
  RunInProcess(2, absl::Seconds(30), [](int rank, InProcessWorld& world) {
    const Comms comms = world.MakeComms(MakeMesh(2, rank, 1, 2, kExperts).value());
    CollectiveDispatcher dispatcher(comms[Axis::kEp], kExperts);
    const at::Tensor ids = RandomIds(7 + rank, 30 + rank);
    const at::Tensor x = Rows(rank, 7 + rank), twice = 2 * x;
    const auto plan = dispatcher.Plan(ByExpert(ids));
    auto first = dispatcher.BeginDispatch(*plan, x, {});
    auto second = dispatcher.BeginDispatch(*plan, twice, {});
    const at::Tensor rows = dispatcher.FinishDispatch(std::move(first)).rows_NH;
    const at::Tensor twice_rows = dispatcher.FinishDispatch(std::move(second)).rows_NH;
    EXPECT_TRUE(at::equal(twice_rows, 2 * rows));
    auto back = dispatcher.BeginCombine(*plan, rows, {});
    auto twice_back = dispatcher.BeginCombine(*plan, twice_rows, {});
    EXPECT_TRUE(at::equal(dispatcher.FinishCombine(std::move(back), x).sum_TH, (kTopK + 1) * x));
    const CombinedRows sum = dispatcher.FinishCombine(std::move(twice_back), {});
    EXPECT_TRUE(at::equal(sum.sum_TH, kTopK * twice));
    EXPECT_FALSE(sum.dweights_TK.defined());
  });
}

TEST(CollectiveDispatcherTest, RoutingForOtherExpertsIsAnError) {
  EXPECT_THAT(
      [] {
        RunInProcess(1, absl::Seconds(30), [](int rank, InProcessWorld& world) {
          const Comms comms = world.MakeComms(MakeMesh(1, rank, 1, 1, 4).value());
          CollectiveDispatcher(comms[Axis::kEp], 4)
              .Plan(ops::MakePermutation(at::full({1, 1}, 4, at::kLong), 5));
        });
      },
      ThrowsMessage<c10::Error>(HasSubstr("4 experts, routed to 5")));
}

TEST(DispatcherChoiceTest, OneRankNeedsNoTransfersAndCpusUseCollectives) {
  for (int ranks : {1, 2}) {
    RunInProcess(ranks, absl::Seconds(30), [&](int rank, InProcessWorld& world) {
      const Mesh mesh = MakeMesh(ranks, rank, 1, ranks, kExperts).value();
      const Comms comms = world.MakeComms(mesh);
      DispatcherNeeds needs;
      needs.num_experts = kExperts;
      needs.top_k = kTopK;
      needs.hidden = kHidden;
      needs.max_tokens = 8;
      const DispatcherChoice choice = ChooseDispatcher(comms[Axis::kEp], mesh, needs);
      EXPECT_EQ(choice.kind, ranks == 1 ? "local" : "collective");
      EXPECT_THAT(choice.reason, HasSubstr(ranks == 1 ? "all experts" : "not bf16 on GPUs"));
      EXPECT_EQ(choice.dispatcher->num_local_experts(), kExperts / ranks);
      EXPECT_FALSE(choice.dispatcher->MustRepeat());
    });
  }
}

}  // namespace
}  // namespace switchyard
