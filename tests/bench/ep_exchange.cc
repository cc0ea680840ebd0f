// E experts, T tokens of a rank, K experts per token, H hidden, N rows received by a rank.
#include <ATen/ATen.h>
#include <signal.h>

#include <cstdio>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "base/clock.h"
#include "tests/bench/device_trace.h"
#include "tests/bench/ep_bench.h"
#include "tests/bench/median.h"
#include "tests/bench/seed_scope.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/ops/permute.h"
#include "worker/trainer/stats.h"

namespace switchyard::bench {
namespace {

constexpr int kRounds = 20;
constexpr int kWarmUp = 4;
constexpr int kTracedRounds = 5;
constexpr absl::Duration kKillTimeout = absl::Seconds(5);  // a lost peer is noticed within 10
constexpr double kSkew = 0.7;  // standard deviation of an expert's log-odds

struct Work {
  at::Tensor ids_TK;      // int32, on the CPU
  at::Tensor weights_TK;  // fp32: each copy's expert, so that a row tells whose it is
  at::Tensor x_TH, residual_TH;
  ops::Permutation by_expert;
  double sent_rows = 0;  // (token, remote rank) pairs: what either dispatcher sends
  double load = 0;       // rows of the fullest rank over the mean
};

at::Tensor DrawIds(Routing routing, int64_t tokens, int64_t experts, int64_t top_k, int rank) {
  at::Tensor log_odds_E = at::zeros({experts});
  if (routing == Routing::kSkewed) {
    const SeedScope same_on_all_ranks(11);
    log_odds_E.normal_(0, kSkew);
  }
  const SeedScope seed(100 + rank);
  // The K largest of log-odds plus Gumbel noise are K draws without repetition.
  const at::Tensor noise_TE = -at::log(-at::log(at::rand({tokens, experts}).clamp(1e-7, 1 - 1e-7)));
  return std::get<1>((noise_TE + log_odds_E).topk(top_k, 1)).to(at::kInt);
}

Work MakeWork(const Rank& rank, const ModelConfig& config, Routing routing, int64_t tokens,
              int64_t hidden) {
  Work work;
  work.ids_TK = DrawIds(routing, tokens, config.num_experts, config.top_k, rank.rank());
  const int64_t local = config.num_experts / rank.world();
  const at::Tensor owner_TK = at::floor_divide(work.ids_TK, local);
  at::Tensor hit_TR = at::zeros({tokens, rank.world()});
  hit_TR.scatter_(1, owner_TK.to(at::kLong), 1.0);
  hit_TR.select(1, rank.rank()).zero_();
  work.sent_rows = hit_TR.sum().item<double>();
  at::Tensor rows_R = at::bincount(owner_TK.flatten(), {}, rank.world());
  rank.comms[Axis::kWorld].AllReduceSum(rows_R);
  work.load = rows_R.max().item<double>() / rows_R.to(at::kDouble).mean().item<double>();
  const at::TensorOptions type = at::TensorOptions().device(rank.device).dtype(at::kBFloat16);
  const SeedScope seed(200 + rank.rank());
  // Small whole numbers: sums of them are exact in bf16, in any order.
  work.x_TH = at::randint(-4, 5, {tokens, hidden}, type);
  work.residual_TH = at::randint(-4, 5, {tokens, hidden}, type);
  const at::Tensor ids_TK = work.ids_TK.to(rank.device);
  work.weights_TK = ids_TK.to(at::kFloat);
  work.by_expert = ops::MakePermutation(ids_TK, config.num_experts);
  return work;
}

int64_t NumRows(const DispatchPlan& plan) { return plan.offsets_E1[-1].item<int64_t>(); }

// That rows reach their experts and come back to their tokens. Also lets the dispatcher find the
// number of rows that this work needs.
bool IsRight(const Rank& rank, TokenDispatcher& dispatcher, const Work& work) {
  std::unique_ptr<DispatchPlan> plan;
  DispatchedRows sent;
  do {
    plan = dispatcher.Plan(work.by_expert);
    sent = dispatcher.Dispatch(*plan, work.x_TH, work.weights_TK);
  } while (dispatcher.MustRepeat());
  const at::Tensor offsets_E1 = plan->offsets_E1.cpu();
  const int64_t rows = NumRows(*plan);
  const int64_t first = rank.rank() * dispatcher.num_local_experts();
  const at::Tensor expert_N = at::repeat_interleave(
      at::arange(first, first + dispatcher.num_local_experts()), offsets_E1.diff().to(at::kLong));
  const bool at_experts =
      at::equal(sent.weights_N.narrow(0, 0, rows).cpu(), expert_N.to(at::kFloat));
  const at::Tensor dweights_PN = at::ones({2, sent.weights_N.size(0)}, sent.weights_N.options());
  const at::Tensor sum_TH = dispatcher.Combine(*plan, sent.rows_NH, work.residual_TH);
  const CombinedRows back = dispatcher.CombineGradients(*plan, sent.rows_NH, dweights_PN);
  const at::Tensor want_TH = work.x_TH * work.ids_TK.size(1);
  const bool right =
      at_experts && at::equal(sum_TH, want_TH + work.residual_TH) &&
      at::equal(back.sum_TH, want_TH) &&
      at::equal(back.dweights_TK.view_as(work.weights_TK), at::full_like(work.weights_TK, 2));
  return rank.All(right);
}

// That two dispatchers give the same bits: rows, weights and sums of numbers that do round.
bool SameBits(const Rank& rank, TokenDispatcher& a, TokenDispatcher& b, const Work& work) {
  at::Tensor x_TH, residual_TH, scale_TK;
  {
    const SeedScope seed(5 + rank.rank());
    x_TH = at::randn_like(work.x_TH);
    residual_TH = at::randn_like(x_TH);
    scale_TK = at::rand(work.weights_TK.sizes(), work.weights_TK.options());
  }
  std::vector<std::vector<at::Tensor>> results;
  for (TokenDispatcher* dispatcher : {&a, &b}) {
    const auto plan = dispatcher->Plan(work.by_expert);
    const DispatchedRows sent = dispatcher->Dispatch(*plan, x_TH, scale_TK);
    const at::Tensor y_NH = (sent.rows_NH * sent.weights_N.unsqueeze(1)).to(at::kBFloat16);
    const CombinedRows back =
        dispatcher->CombineGradients(*plan, y_NH, at::stack({sent.weights_N, 3 * sent.weights_N}));
    const int64_t rows = NumRows(*plan);
    results.push_back(
        {plan->offsets_E1, sent.rows_NH.narrow(0, 0, rows), sent.weights_N.narrow(0, 0, rows),
         dispatcher->Combine(*plan, y_NH, residual_TH), back.sum_TH, back.dweights_TK.flatten()});
  }
  bool same = true;
  for (size_t i = 0; i < results[0].size(); ++i) {
    same = same && at::equal(results[0][i].cpu(), results[1][i].cpu());
  }
  return rank.All(same);
}

constexpr const char* kPhases[] = {"plan", "dispatch", "combine", "replay", "gradients"};

// Median microseconds of each phase, of the slowest rank.
std::map<std::string, double> TimePhases(const Rank& rank, TokenDispatcher& dispatcher,
                                         const Work& work) {
  std::map<std::string, std::vector<double>> times;
  for (int round = 0; round < kWarmUp + kRounds; ++round) {
    StepTimer timer(RealClock::Get(), rank.device);
    const auto plan = dispatcher.Plan(work.by_expert);
    timer.Lap("plan");
    const DispatchedRows sent = dispatcher.Dispatch(*plan, work.x_TH, work.weights_TK);
    timer.Lap("dispatch");
    const at::Tensor sum_TH = dispatcher.Combine(*plan, sent.rows_NH, work.residual_TH);
    timer.Lap("combine");
    const DispatchedRows again = dispatcher.Dispatch(*plan, sum_TH, {});
    timer.Lap("replay");
    dispatcher.CombineGradients(*plan, again.rows_NH, sent.weights_N.unsqueeze(0));
    timer.Lap("gradients");
    const StepTimer::Times read = timer.Read();
    if (round < kWarmUp) continue;
    for (const auto& [phase, seconds] : read.seconds) times[phase].push_back(1e6 * seconds);
  }
  std::map<std::string, double> medians;
  for (const char* phase : kPhases) medians[phase] = rank.Slowest(Median(times[phase]));
  return medians;
}

// Mean microseconds of a call of each kernel of the communication, of the slowest rank, by the
// profiler; kernels that wait last as long as they wait.
std::map<std::string, double> TimeKernels(const Rank& rank, TokenDispatcher& dispatcher,
                                          const Work& work) {
  constexpr const char* kNames[] = {"RouteKernel",       "ExchangeKernel", "PlaceKernel",
                                    "CombinePushKernel", "PushKernel",     "ExpandKernel",
                                    "ReduceKernel",      "WaitKernel",     "nccl"};
  const auto rounds = [&](int count) {
    at::Tensor last;
    for (int round = 0; round < count; ++round) {
      rank.comms[Axis::kWorld].Barrier();  // a late rank is no transfer
      const auto plan = dispatcher.Plan(work.by_expert);
      const DispatchedRows sent = dispatcher.Dispatch(*plan, work.x_TH, work.weights_TK);
      last = dispatcher.Combine(*plan, sent.rows_NH, work.residual_TH);
    }
    return last;
  };
  RecordTrace([&] { return rounds(1); });  // the profiler's own start
  const Trace trace = RecordTrace([&] { return rounds(kTracedRounds); });
  std::map<std::string, std::pair<double, int>> found;
  for (const Kernel& kernel : trace.kernels) {
    for (const char* name : kNames) {
      if (!absl::StrContains(kernel.name, name)) continue;
      found[name].first += kernel.us;
      ++found[name].second;
      break;
    }
  }
  std::map<std::string, double> mean;
  for (const char* name : kNames) {
    const auto& [us, calls] = found[name];
    mean[name] = rank.Slowest(calls > 0 ? us / calls : 0);
  }
  return mean;
}

void PrintKernels(const std::map<std::string, double>& us, double bytes, Json* row) {
  std::printf("  ");
  for (const auto& [name, mean] : us) {
    if (mean == 0) continue;
    std::printf(" %s %.1f us", name.c_str(), mean);
    (*row)[name + "_us"] = mean;
    if (absl::StrContains(name, "Push")) std::printf(" = %.0f GB/s", bytes / mean / 1e3);
  }
  std::printf("\n");
}

// Dies at a moment when the others wait for it.
void DieWhileOthersWait(const Rank& rank, int64_t victim, TokenDispatcher& dispatcher,
                        const Work& work) {
  for (int round = 0; round < 3; ++round) {
    const auto plan = dispatcher.Plan(work.by_expert);
    dispatcher.Dispatch(*plan, work.x_TH, work.weights_TK).rows_NH.flatten()[0].item<double>();
  }
  if (rank.rank() == victim) raise(SIGKILL);
  for (int round = 0; round < 1000; ++round) {
    const auto plan = dispatcher.Plan(work.by_expert);
    dispatcher.Dispatch(*plan, work.x_TH, work.weights_TK).rows_NH.flatten()[0].item<double>();
  }
}

}  // namespace

bool RunEpExchange(const EpContext& context) {
  const Rank& rank = context.rank;
  const EpOptions& ep = context.options.ep;
  const ModelConfig config = OrThrow(ShapeByName(context.options.shape, 1));
  if (rank.first()) {
    std::printf(
        "# exchange: %lld experts, top %lld; us of the slowest rank, GB/s of what leaves a "
        "GPU; replay and gradients as in a backward\n",
        static_cast<long long>(config.num_experts), static_cast<long long>(config.top_k));
    std::printf("%-10s %-8s %6s %6s %6s %5s %8s %8s", "how", "routing", "H", "T", "blocks", "load",
                "MB", "plan us");
    for (const char* phase : {"dispatch", "combine", "replay", "gradient"}) {
      std::printf(" %9s %6s", phase, "GB/s");
    }
    std::printf("  %s\n", "check");
  }
  bool good = true;
  for (const int64_t hidden : ep.hidden) {
    for (const int64_t tokens : ep.tokens) {
      for (const Routing routing : ep.routings) {
        const Work work = MakeWork(rank, config, routing, tokens, hidden);
        for (const DispatcherKind kind : ep.dispatchers) {
          const bool push = kind == DispatcherKind::kPush;
          for (const int64_t blocks : push ? ep.blocks : std::vector<int64_t>{0}) {
            DispatcherShape shape{config.num_experts, config.top_k, hidden, tokens, blocks};
            if (ep.kill_rank >= 0) shape.timeout = kKillTimeout;
            const auto dispatcher = MakeDispatcher(kind, rank, shape);
            if (ep.kill_rank >= 0) DieWhileOthersWait(rank, ep.kill_rank, *dispatcher, work);
            bool right = IsRight(rank, *dispatcher, work);
            if (push) {
              const auto reference = MakeDispatcher(DispatcherKind::kCollective, rank, shape);
              right = SameBits(rank, *reference, *dispatcher, work) && right;
            }
            good = good && right;
            const std::map<std::string, double> us = TimePhases(rank, *dispatcher, work);
            // Threads share the profiler: whose kernel is whose could not be told.
            std::map<std::string, double> kernels;
            if (rank.in_process == nullptr && rank.device.is_cuda()) {
              kernels = TimeKernels(rank, *dispatcher, work);
            }
            const double rows = rank.Sum(work.sent_rows) / rank.world();
            const double bytes = rows * static_cast<double>(hidden) * 2;
            if (!rank.first()) continue;
            std::printf("%-10s %-8s %6lld %6lld %6lld %5.2f %8.1f %8.1f", Name(kind), Name(routing),
                        static_cast<long long>(hidden), static_cast<long long>(tokens),
                        static_cast<long long>(blocks), work.load, bytes / 1e6, us.at("plan"));
            Json row = {{"item", "exchange"},       {"how", Name(kind)}, {"routing", Name(routing)},
                        {"ranks", rank.world()},    {"hidden", hidden},  {"tokens", tokens},
                        {"blocks", blocks},         {"load", work.load}, {"bytes", bytes},
                        {"plan_us", us.at("plan")}, {"right", right}};
            for (const char* phase : {"dispatch", "combine", "replay", "gradients"}) {
              std::printf(" %9.1f %6.1f", us.at(phase), bytes / us.at(phase) / 1e3);
              row[std::string(phase) + "_us"] = us.at(phase);
            }
            std::printf("  %s\n", right ? "ok" : "WRONG");
            if (!kernels.empty()) PrintKernels(kernels, bytes, &row);
            std::fflush(stdout);
            context.json.Add(row);
          }
        }
      }
    }
  }
  return good;
}

}  // namespace switchyard::bench
