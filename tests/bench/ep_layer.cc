// T tokens of a rank, E experts, H hidden, F width of an expert.
#include <ATen/ATen.h>

#include <cstdio>
#include <optional>
#include <string>

#include "base/clock.h"
#include "tests/bench/device_trace.h"
#include "tests/bench/ep_bench.h"
#include "tests/bench/median.h"
#include "tests/bench/seed_scope.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/device.h"
#include "worker/trainer/models/moe_block.h"
#include "worker/trainer/parallel/local_dispatcher.h"
#include "worker/trainer/stats.h"

namespace switchyard::bench {
namespace {

constexpr int kWarmUp = 4;
constexpr int kSamples = 20;
constexpr int kTraces = 4;  // the shortest counts: the profiler itself delays the first
// Of |got - reference| over |reference|: bf16 sums in another order, and rows rounded once per
// rank.
constexpr double kTolerance = 0.02;

struct Block {
  ModelConfig config;
  at::Tensor router_EH;
  ExpertParameters all;  // of all ranks; every rank draws the same
  at::Tensor x_TH, residual_TH, dy_TH;
};

Block MakeBlock(const Rank& rank, const Options& options, Routing routing, int64_t tokens) {
  Block block;
  block.config = OrThrow(ShapeByName(options.shape, 1));
  const ModelConfig& c = block.config;
  const at::TensorOptions type = at::TensorOptions().device(rank.device).dtype(at::kBFloat16);
  at::Tensor common_H;
  {
    const SeedScope same_on_all_ranks(21);
    block.router_EH = at::randn({c.num_experts, c.hidden_size}, type) * 0.02;
    block.all.gate_up_E2FH =
        at::randn({c.num_experts, 2 * c.moe_intermediate_size, c.hidden_size}, type).mul_(0.02);
    block.all.down_EHF =
        at::randn({c.num_experts, c.hidden_size, c.moe_intermediate_size}, type).mul_(0.02);
    common_H = at::randn({c.hidden_size}, type);
  }
  const SeedScope seed(300 + rank.rank());
  block.x_TH = at::randn({tokens, c.hidden_size}, type);
  // A component that all tokens have in common makes the same experts more probable for all.
  if (routing == Routing::kSkewed) block.x_TH = (block.x_TH + common_H).div_(1.4142);
  block.residual_TH = at::randn({tokens, c.hidden_size}, type);
  block.dy_TH = at::randn({tokens, c.hidden_size}, type);
  return block;
}

// One rank's experts, and what a forward and a backward of the block leave behind.
class BlockRun {
 public:
  BlockRun(const Block& block, TokenDispatcher& dispatcher, int64_t first_expert)
      : block_(block), dispatcher_(dispatcher), context_{block.config, dispatcher, false,
                                                         false,        {},         {}} {
    const int64_t count = dispatcher.num_local_experts();
    experts_ = {block.all.gate_up_E2FH.narrow(0, first_expert, count),
                block.all.down_EHF.narrow(0, first_expert, count)};
    gradients_.router_EH = at::empty_like(block.router_EH);
    gradients_.experts = {at::empty_like(experts_.gate_up_E2FH), at::empty_like(experts_.down_EHF)};
    gradients_.accumulate_router = gradients_.accumulate_experts = false;
  }

  at::Tensor Forward() {
    saved_.emplace();
    y_TH_ = MoeForward(context_, block_.router_EH, experts_, block_.x_TH, block_.residual_TH,
                       &*saved_, nullptr);
    return y_TH_;
  }
  at::Tensor Backward() {
    dx_TH_ = MoeBackward(context_, block_.router_EH, experts_, block_.x_TH, {}, &*saved_,
                         gradients_, dispatcher_.BeginDispatch(*saved_->plan, block_.dy_TH, {}));
    return dx_TH_;
  }

  bool MustRepeat() { return dispatcher_.MustRepeat(); }

  const at::Tensor& y_TH() const { return y_TH_; }
  const at::Tensor& dx_TH() const { return dx_TH_; }
  const MoeGradients& gradients() const { return gradients_; }
  double Rows() const { return saved_->plan->offsets_E1[-1].item<double>(); }

 private:
  const Block& block_;
  TokenDispatcher& dispatcher_;
  BatchContext context_;
  ExpertParameters experts_;
  MoeGradients gradients_;
  std::optional<MoeSaved> saved_;
  at::Tensor y_TH_, dx_TH_;
};

bool Close(const at::Tensor& got, const at::Tensor& want) {
  const at::Tensor reference = want.to(at::kFloat);
  const double error = (got.to(at::kFloat) - reference).norm().item<double>();
  return error <= kTolerance * reference.norm().item<double>();  // false for NaN
}

// Against the block that has all experts here: output and input gradient of this rank's tokens, and
// a slice of the weight gradients, summed over the ranks' tokens.
bool IsRight(const Rank& rank, const Block& block, BlockRun& run) {
  LocalDispatcher all_here(block.config.num_experts);
  BlockRun reference(block, all_here, 0);
  reference.Forward();
  reference.Backward();
  do {
    run.Forward();
  } while (run.MustRepeat());
  run.Backward();
  at::Tensor ddown_EF = reference.gradients().experts.down_EHF.select(1, 0).to(at::kFloat).cpu();
  rank.comms[Axis::kWorld].AllReduceSum(ddown_EF);
  const at::Tensor mine = run.gradients().experts.down_EHF.select(1, 0).cpu();
  return rank.All(Close(run.y_TH(), reference.y_TH()) && Close(run.dx_TH(), reference.dx_TH()) &&
                  Close(mine, ddown_EF.narrow(0, rank.rank() * mine.size(0), mine.size(0))));
}

// Of the slowest rank each.
struct Measured {
  double forward_us = 0, backward_us = 0;
  Overlap forward, backward;
};

Overlap Slowest(const Rank& rank, const Overlap& mine) {
  return {rank.Slowest(mine.span_us), rank.Slowest(mine.kind_us), rank.Slowest(mine.exposed_us)};
}

Measured Measure(const Rank& rank, BlockRun& run) {
  std::vector<double> forward, backward;
  for (int i = 0; i < kWarmUp + kSamples; ++i) {
    StepTimer timer(RealClock::Get(), rank.device);
    run.Forward();
    timer.Lap("forward");
    run.Backward();
    timer.Lap("backward");
    const StepTimer::Times times = timer.Read();
    if (i < kWarmUp) continue;
    forward.push_back(1e6 * times.seconds.at("forward"));
    backward.push_back(1e6 * times.seconds.at("backward"));
  }
  Measured measured;
  measured.forward_us = rank.Slowest(Median(forward));
  measured.backward_us = rank.Slowest(Median(backward));
  // Threads share the profiler and the GPU: whose kernel hides whose could not be told.
  if (rank.in_process == nullptr && rank.device.is_cuda()) {
    const auto trace = [&](bool backward) {
      Overlap best;
      for (int i = 0; i < kTraces; ++i) {
        if (backward) run.Forward();
        FlushDevice(rank.device);
        const Trace recorded = RecordTrace([&] {
          rank.comms[Axis::kWorld].Barrier();  // a late rank is no transfer
          return backward ? run.Backward() : run.Forward();
        });
        const Overlap now = Slowest(rank, MeasureOverlap(recorded.kernels, IsTransfer));
        if (i == 0 || now.span_us < best.span_us) best = now;
      }
      return best;
    };
    measured.forward = trace(false);
    measured.backward = trace(true);
  }
  return measured;
}

}  // namespace

bool RunEpLayer(const EpContext& context) {
  const Rank& rank = context.rank;
  if (rank.first()) {
    std::printf(
        "# layer: MoE block of %s; transfer: time with a kernel of the communication, "
        "exposed: of it, with no other beside it\n",
        context.options.shape.c_str());
    std::printf("%-10s %-8s %6s %5s %9s %6s %9s %8s %9s %6s %9s %8s  %s\n", "how", "routing", "T",
                "load", "fwd us", "TF", "transfer", "exposed", "bwd us", "TF", "transfer",
                "exposed", "check");
  }
  bool good = true;
  for (const int64_t tokens : context.options.ep.tokens) {
    for (const Routing routing : context.options.ep.routings) {
      const Block block = MakeBlock(rank, context.options, routing, tokens);
      const ModelConfig& c = block.config;
      for (const DispatcherKind kind : context.options.ep.dispatchers) {
        const auto dispatcher = MakeDispatcher(
            kind, rank,
            {c.num_experts, c.top_k, c.hidden_size, tokens, context.options.ep.blocks.front()});
        BlockRun run(block, *dispatcher, rank.rank() * dispatcher->num_local_experts());
        const bool right = IsRight(rank, block, run);
        good = good && right;
        const double rows = run.Rows();
        const double load = rank.Slowest(rows) / (rank.Sum(rows) / rank.world());
        const Measured m = Measure(rank, run);
        if (!rank.first()) continue;
        const double flops =
            6.0 * static_cast<double>(tokens * c.top_k * c.hidden_size * c.moe_intermediate_size);
        const double forward_tf = flops / m.forward_us / 1e6;
        const double backward_tf = 2 * flops / m.backward_us / 1e6;
        std::printf("%-10s %-8s %6lld %5.2f %9.1f %6.1f %9.1f %8.1f %9.1f %6.1f %9.1f %8.1f  %s\n",
                    Name(kind), Name(routing), static_cast<long long>(tokens), load, m.forward_us,
                    forward_tf, m.forward.kind_us, m.forward.exposed_us, m.backward_us, backward_tf,
                    m.backward.kind_us, m.backward.exposed_us, right ? "ok" : "WRONG");
        std::fflush(stdout);
        context.json.Add({{"item", "layer"},
                          {"how", Name(kind)},
                          {"routing", Name(routing)},
                          {"ranks", rank.world()},
                          {"tokens", tokens},
                          {"load", load},
                          {"forward_us", m.forward_us},
                          {"forward_tflops", forward_tf},
                          {"forward_transfer_us", m.forward.kind_us},
                          {"forward_exposed_us", m.forward.exposed_us},
                          {"backward_us", m.backward_us},
                          {"backward_tflops", backward_tf},
                          {"backward_transfer_us", m.backward.kind_us},
                          {"backward_exposed_us", m.backward.exposed_us},
                          {"right", right}});
      }
    }
  }
  return good;
}

}  // namespace switchyard::bench
