// What the tests of PushDispatcher share: its copy of a routing, and CollectiveDispatcher's beside
// it.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_PUSH_DISPATCHER_TEST_SUPPORT_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_PUSH_DISPATCHER_TEST_SUPPORT_H_

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "worker/trainer/ops/permute.h"
#include "worker/trainer/parallel/collective_dispatcher.h"
#include "worker/trainer/parallel/push_dispatcher.h"

namespace switchyard {

// Small enough for eight ranks on one GPU.
inline PushOptions SmallPush(int ranks, int rank) {
  PushOptions options;
  options.num_experts = 16;
  options.top_k = 4;
  options.hidden = 264;
  options.max_tokens = 300;
  options.rank = rank;
  for (int r = 0; r < ranks; ++r) options.ranks.push_back(r);
  options.timeout = absl::Seconds(20);
  options.row_budget = ranks;  // whatever the router chooses
  options.push_blocks = 4;
  return options;
}

// Collective over `ep`.
inline std::unique_ptr<PushDispatcher> MakePush(Comm& ep, at::Device device,
                                                const PushOptions& options) {
  PushDispatcherResult made = PushDispatcher::Make(ep, options, device);
  TORCH_CHECK(made.dispatcher != nullptr, "no push dispatcher: ", made.explanation);
  return std::move(made.dispatcher);
}

// What one rank has in one MoE layer.
struct LayerInput {
  ops::Permutation by_expert;
  at::Tensor x_TH;        // bf16
  at::Tensor weights_TK;  // fp32
};

// Experts are drawn from the first `hot`, or from all.
inline LayerInput DrawLayer(const PushOptions& options, int64_t tokens, int seed, at::Device device,
                            int64_t hot = 0) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const int64_t experts = hot > 0 ? hot : options.num_experts;
  const at::Tensor ids_TK =
      std::get<1>(at::rand({tokens, experts}, generator, at::kFloat).topk(options.top_k, 1));
  LayerInput out;
  out.by_expert = ops::MakePermutation(ids_TK.to(device), options.num_experts);
  out.x_TH =
      at::randn({tokens, options.hidden}, generator, at::kFloat).to(at::kBFloat16).to(device);
  out.weights_TK = at::rand({tokens, options.top_k}, generator, at::kFloat).to(device);
  return out;
}

inline bool SameBits(const at::Tensor& a, const at::Tensor& b) {
  const at::ScalarType bits = a.element_size() == 2 ? at::kShort : at::kInt;
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         at::equal(a.contiguous().view(bits), b.contiguous().view(bits));
}

// One layer forward and backward, by both. Collective.
inline void ExpectSameBits(TokenDispatcher& push, CollectiveDispatcher& collective,
                           const LayerInput& in, const std::string& what) {
  const auto plan = push.Plan(in.by_expert);
  const auto want_plan = collective.Plan(in.by_expert);
  const int64_t rows = want_plan->num_rows;
  EXPECT_TRUE(at::equal(plan->offsets_E1, want_plan->offsets_E1)) << what;
  ASSERT_GE(plan->num_rows, rows) << what;
  const DispatchedRows sent = push.Dispatch(*plan, in.x_TH, in.weights_TK);
  const DispatchedRows want = collective.Dispatch(*want_plan, in.x_TH, in.weights_TK);
  EXPECT_TRUE(SameBits(sent.rows_NH.narrow(0, 0, rows), want.rows_NH)) << what;
  EXPECT_TRUE(SameBits(sent.weights_N.narrow(0, 0, rows), want.weights_N)) << what;
  // What an expert might make of them: each copy of a token another row.
  const auto compute = [](const DispatchedRows& in) {
    return (in.rows_NH * in.weights_N.unsqueeze(1)).to(at::kBFloat16);
  };
  const at::Tensor y_NH = compute(sent), want_y_NH = compute(want);
  EXPECT_TRUE(SameBits(push.Combine(*plan, y_NH, in.x_TH),
                       collective.Combine(*want_plan, want_y_NH, in.x_TH)))
      << what;
  // The backward replays the plan.
  const at::Tensor again = push.Dispatch(*plan, in.x_TH * 3, {}).rows_NH;
  EXPECT_TRUE(
      SameBits(again.narrow(0, 0, rows), collective.Dispatch(*want_plan, in.x_TH * 3, {}).rows_NH))
      << what;
  const auto partials = [](const DispatchedRows& in) {
    return at::stack(
        {in.weights_N * 0.3, in.weights_N * 0.7, in.rows_NH.select(1, 0).to(at::kFloat)});
  };
  const CombinedRows back = push.CombineGradients(*plan, y_NH, partials(sent));
  const CombinedRows want_back = collective.CombineGradients(*want_plan, want_y_NH, partials(want));
  EXPECT_TRUE(SameBits(back.sum_TH, want_back.sum_TH)) << what;
  EXPECT_TRUE(SameBits(back.dweights_TK, want_back.dweights_TK)) << what;
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_PUSH_DISPATCHER_TEST_SUPPORT_H_
