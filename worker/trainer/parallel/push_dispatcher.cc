// T tokens, K experts per token, N rows of the budget, H hidden, E experts, R ranks, P partial
// sums.
#include "worker/trainer/parallel/push_dispatcher.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAEvent.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/dispatch/layout.h"
#include "worker/trainer/ops/kernel_call.h"
#include "worker/trainer/parallel/comm_error.h"
#include "worker/trainer/parallel/side_stream.h"

namespace switchyard {
namespace {

using ops::Bf16Of;
using ops::CheckKernel;
using ops::CurrentStream;
using ops::FloatOf;
using ops::IntOf;

constexpr int64_t kMaxPlans = 1024;  // between two calls of MustRepeat
constexpr int64_t kRowUnit = 128;    // budgets are multiples

kernels::DispatchShape ShapeOf(const PushOptions& options) {
  kernels::DispatchShape shape = {};
  shape.ranks = static_cast<int>(options.ranks.size());
  shape.experts = static_cast<int>(options.num_experts);
  shape.top_k = static_cast<int>(options.top_k);
  shape.hidden = static_cast<int>(options.hidden);
  shape.max_tokens = options.max_tokens;
  return shape;
}

int64_t RoundUp(int64_t rows) { return (rows + kRowUnit - 1) / kRowUnit * kRowUnit; }

// A plan may need no more than this.
int64_t MostRows(const PushOptions& options) {
  const auto ranks = static_cast<int64_t>(options.ranks.size());
  return ranks * options.max_tokens * std::min(options.top_k, options.num_experts / ranks);
}

int64_t FirstBudget(const PushOptions& options) {
  const double mean = static_cast<double>(options.max_tokens * options.top_k);
  return std::min(RoundUp(static_cast<int64_t>(std::ceil(mean * options.row_budget))),
                  MostRows(options));
}

// Host memory that kernels write: pinned, zeroed, at the same address for both.
template <typename T>
class MappedMemory {
 public:
  explicit MappedMemory(int64_t count) {
    void* data = nullptr;
    CheckKernel(cudaHostAlloc(&data, count * sizeof(T), cudaHostAllocMapped), "pin memory");
    data_ = static_cast<T*>(data);
    std::fill_n(reinterpret_cast<char*>(data), count * sizeof(T), 0);
  }
  ~MappedMemory() { cudaFreeHost(data_); }
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

const char* Describe(kernels::DispatchPhase phase) {
  switch (phase) {
    case kernels::DispatchPhase::kExchange:
      return "the counts of the exchange";
    case kernels::DispatchPhase::kDispatchRoom:
      return "room for dispatched rows";
    case kernels::DispatchPhase::kDispatchArrival:
      return "dispatched rows";
    case kernels::DispatchPhase::kCombineRoom:
      return "room for sums to combine";
    case kernels::DispatchPhase::kCombineArrival:
      return "sums to combine";
  }
  return "something unknown";
}

struct PushPlan final : DispatchPlan {
  kernels::DispatchPlanData data;
  at::Tensor words;  // what `data` points into
  int64_t layer = 0;
  // Of what the plan holds by now. Written by the calls on it: a plan belongs to one thread.
  mutable StreamPoint ready;
  mutable bool dispatched = false;  // once, so that peers know where its records go
};

const PushPlan& Cast(const DispatchPlan& plan) { return static_cast<const PushPlan&>(plan); }

struct PushDispatch final : PendingDispatch {
  const PushPlan* plan = nullptr;
  at::Tensor x_TH, weights_TK;
  bool headers = false;
  StreamPoint pushed;
};

struct PushCombine final : PendingCombine {
  const PushPlan* plan = nullptr;
  at::Tensor rows_NH, dweights_PN;
  StreamPoint pushed;
};

void CheckInput(const at::Tensor& tensor, at::ScalarType type, at::IntArrayRef sizes,
                const char* what) {
  TORCH_CHECK(tensor.is_cuda() && tensor.scalar_type() == type && tensor.sizes() == sizes &&
                  tensor.is_contiguous(),
              what, " must be contiguous ", type, " ", sizes, " on CUDA, got ",
              tensor.scalar_type(), " ", tensor.sizes(), " on ", tensor.device());
}

}  // namespace

struct PushDispatcher::Impl {
  Impl(const PushOptions& options, c10::Device device, std::unique_ptr<SymmetricMemory> memory)
      : options(options),
        device(device),
        memory(std::move(memory)),
        error(1),
        needed_rows(kMaxPlans),
        abort_word(1),
        stream(device),
        budget(FirstBudget(options)) {}

  at::TensorOptions Ints() const { return at::TensorOptions(device).dtype(at::kInt); }

  void BeforeWaiting() const {
    if (options.before_waiting != nullptr) options.before_waiting();
  }
  // The current stream does what a kind of call needs: such calls run one after another.
  void Follow(const StreamPoint& previous) const { previous.WaitOn(device); }

  void Check() {
    const kernels::DispatchFailure failure =
        std::atomic_ref(error.data()->failure).load(std::memory_order_acquire);
    if (failure == kernels::DispatchFailure::kNone) return;
    memory->Abandon();
    const kernels::DispatchError& e = *error.data();
    const std::string where =
        absl::StrCat("push dispatch over ranks ", absl::StrJoin(options.ranks, ","), ": rank ",
                     options.ranks[e.rank]);
    const std::string what =
        absl::StrCat(Describe(e.phase), " in MoE layer ", e.layer, " (round ", e.round, ")");
    if (failure == kernels::DispatchFailure::kPeerAborted) {
      throw CommError(absl::StrCat(where, " stopped waiting for ", what, ": rank ",
                                   options.ranks[e.peer], " has given up"));
    }
    throw CommError(absl::StrCat(where, " waited ", absl::FormatDuration(options.timeout),
                                 " for rank ", options.ranks[e.peer], ": ", what));
  }

  const PushOptions options;
  const c10::Device device;
  const std::unique_ptr<SymmetricMemory> memory;
  const MappedMemory<kernels::DispatchError> error;
  const MappedMemory<int32_t> needed_rows;  // of each plan since the last MustRepeat
  const MappedMemory<uint32_t> abort_word;
  const int exceptions = std::uncaught_exceptions();
  SideStream stream;
  kernels::DispatchGroup group = {};
  int64_t budget;
  int64_t num_plans = 0;  // since the last MustRepeat
  at::cuda::CUDAEvent last_plan;
  StreamPoint planned, dispatched, combined;  // the last call of each kind
  int64_t num_repeats = 0;
};

std::string PushDispatcher::WhyNot(const PushOptions& options) {
  const auto ranks = static_cast<int64_t>(options.ranks.size());
  if (ranks > kernels::kMaxDispatchRanks) {
    return absl::StrCat(ranks, " ranks, ", kernels::kMaxDispatchRanks, " are served");
  }
  if (options.num_experts > kernels::kMaxDispatchExperts || options.num_experts % ranks != 0) {
    return absl::StrCat(options.num_experts, " experts, up to ", kernels::kMaxDispatchExperts,
                        " divided by ", ranks, " ranks are served");
  }
  if (options.top_k > kernels::kMaxDispatchTopK) {
    return absl::StrCat(options.top_k, " experts per token, ", kernels::kMaxDispatchTopK,
                        " are served");
  }
  if (options.hidden % 8 != 0 || options.hidden > kernels::kMaxDispatchHidden) {
    return absl::StrCat("hidden size ", options.hidden, ", multiples of 8 up to ",
                        kernels::kMaxDispatchHidden, " are served");
  }
  return "";
}

int64_t PushDispatcher::MemoryBytes(const PushOptions& options) {
  return kernels::DispatchArenaLayout(ShapeOf(options)).bytes;
}

PushDispatcherResult PushDispatcher::Make(Comm& ep, PushOptions options, c10::Device device) {
  if (std::string fault = WhyNot(options); !fault.empty()) return {nullptr, std::move(fault)};
  const int64_t bytes = MemoryBytes(options);
  SymmetricMemoryResult made = MakeSymmetricMemory(ep, device, bytes);
  if (made.memory == nullptr) {
    return {nullptr, absl::StrCat("no memory that all ranks can address: ", made.explanation)};
  }
  if (made.memory->in_process() && options.before_waiting == nullptr) {
    options.before_waiting = [&ep] { ep.Barrier(); };
  }
  return {std::make_unique<PushDispatcher>(options, device, std::move(made.memory)),
          absl::StrCat(made.explanation, ", ", bytes, " bytes per rank")};
}

PushDispatcher::PushDispatcher(const PushOptions& options, c10::Device device,
                               std::unique_ptr<SymmetricMemory> memory)
    : impl_(std::make_unique<Impl>(options, device, std::move(memory))) {
  const std::string fault = WhyNot(options);
  TORCH_CHECK(fault.empty(), "push dispatcher: ", fault);
  const std::vector<uint8_t*>& blocks = impl_->memory->blocks();
  TORCH_CHECK(blocks.size() == options.ranks.size(), "bug: memory of ", blocks.size(),
              " ranks for a group of ", options.ranks.size());
  kernels::DispatchGroup& group = impl_->group;
  group.shape = ShapeOf(options);
  group.rank = options.rank;
  std::copy(blocks.begin(), blocks.end(), group.arenas);
  group.error = impl_->error.data();
  group.timeout_ns = static_cast<uint64_t>(absl::ToInt64Nanoseconds(options.timeout));
  CheckKernel(kernels::DispatchLoad(), "load the dispatch kernels");
}

PushDispatcher::~PushDispatcher() {
  if (std::uncaught_exceptions() > impl_->exceptions) GiveUp();
  // What is queued still writes the host memory and reads the plans' tables.
  cudaDeviceSynchronize();
}

int64_t PushDispatcher::num_local_experts() const {
  return impl_->options.num_experts / static_cast<int64_t>(impl_->options.ranks.size());
}

int PushDispatcher::sms_in_flight() const { return impl_->options.push_blocks; }

int64_t PushDispatcher::num_repeats() const { return impl_->num_repeats; }

int64_t PushDispatcher::row_budget() const { return impl_->budget; }

void PushDispatcher::CheckHealth() { impl_->Check(); }

void PushDispatcher::GiveUp() noexcept {
  Impl& m = *impl_;
  m.memory->Abandon();
  // Copies on a stream of their own pass the kernels that wait. What fails here is left to the
  // peers' timeouts.
  cudaStream_t stream = nullptr;
  if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return;
  *m.abort_word.data() = 1 + static_cast<uint32_t>(m.group.rank);
  const int64_t at =
      kernels::DispatchArenaLayout(m.group.shape).state + offsetof(kernels::DispatchState, abort);
  for (uint8_t* block : m.memory->blocks()) {
    cudaMemcpyAsync(block + at, m.abort_word.data(), sizeof(uint32_t), cudaMemcpyDefault, stream);
  }
  cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
}

std::unique_ptr<DispatchPlan> PushDispatcher::Plan(const ops::Permutation& by_expert) {
  Impl& m = *impl_;
  TORCH_CHECK(by_expert.offsets_E1.numel() == m.options.num_experts + 1,
              "dispatcher: ", m.options.num_experts, " experts, routed to ",
              by_expert.offsets_E1.numel() - 1);
  TORCH_CHECK(by_expert.top_k == m.options.top_k && by_expert.num_tokens <= m.options.max_tokens,
              "dispatcher: ", by_expert.num_tokens, " tokens of ", by_expert.top_k,
              " experts each, set up for ", m.options.max_tokens, " of ", m.options.top_k);
  TORCH_CHECK(m.num_plans < kMaxPlans, "bug: ", kMaxPlans, " plans without MustRepeat");
  m.Check();
  auto plan = std::make_unique<PushPlan>();
  plan->num_tokens = by_expert.num_tokens;
  plan->num_rows = m.budget;
  plan->layer = m.num_plans++;
  plan->words =
      at::empty({kernels::DispatchPlanWords(m.group.shape, by_expert.num_tokens)}, m.Ints());
  plan->data =
      kernels::DispatchPlanAt(m.group.shape, by_expert.num_tokens, m.budget, IntOf(plan->words));
  plan->data.needed_rows = m.needed_rows.data() + plan->layer;
  plan->offsets_E1 =
      plan->words.narrow(0, plan->data.offsets - IntOf(plan->words), num_local_experts() + 1);

  m.Follow(m.planned);
  kernels::DispatchRouteParams route = {};
  route.group = m.group;
  route.plan = plan->data;
  route.row_of = IntOf(by_expert.row_of_TK);
  route.offsets = IntOf(by_expert.offsets_E1);
  CheckKernel(kernels::DispatchRoute(route, CurrentStream()), "dispatch: route");
  m.BeforeWaiting();
  kernels::DispatchExchangeParams exchange = {};
  exchange.group = m.group;
  exchange.plan = plan->data;
  exchange.row_of = route.row_of;
  exchange.offsets = route.offsets;
  exchange.layer = static_cast<int>(plan->layer);
  CheckKernel(kernels::DispatchExchange(exchange, CurrentStream()), "dispatch: exchange");
  m.planned = CurrentPoint(m.device);
  m.last_plan.record();
  plan->ready = CurrentPoint(m.device);
  return plan;
}

std::unique_ptr<PendingDispatch> PushDispatcher::BeginDispatch(const DispatchPlan& base,
                                                               const at::Tensor& x_TH,
                                                               const at::Tensor& weights_TK) {
  Impl& m = *impl_;
  const PushPlan& plan = Cast(base);
  CheckInput(x_TH, at::kBFloat16, {plan.num_tokens, m.options.hidden}, "dispatch: x");
  if (weights_TK.defined()) {
    CheckInput(weights_TK, at::kFloat, {plan.num_tokens, m.options.top_k}, "dispatch: weights");
  }
  m.Check();
  auto pending = std::make_unique<PushDispatch>();
  pending->plan = &plan;
  pending->x_TH = x_TH;
  pending->weights_TK = weights_TK;
  pending->headers = weights_TK.defined() || !plan.dispatched;
  plan.dispatched = true;
  pending->pushed = m.stream.Run([&] {
    plan.ready.WaitOn(m.device);
    kernels::DispatchPushParams p = {};
    p.group = m.group;
    p.plan = plan.data;
    p.x = Bf16Of(x_TH);
    p.weights = FloatOf(weights_TK);
    p.headers = pending->headers;
    p.blocks = m.options.push_blocks;
    p.layer = static_cast<int>(plan.layer);
    CheckKernel(kernels::DispatchPush(p, CurrentStream()), "dispatch: push");
  });
  return pending;
}

DispatchedRows PushDispatcher::FinishDispatch(std::unique_ptr<PendingDispatch> base) {
  Impl& m = *impl_;
  m.Check();
  const auto& pending = static_cast<const PushDispatch&>(*base);
  const PushPlan& plan = *pending.plan;
  DispatchedRows out;
  out.rows_NH = at::empty({plan.num_rows, m.options.hidden}, pending.x_TH.options());
  if (pending.weights_TK.defined()) {
    out.weights_N = at::empty({plan.num_rows}, pending.weights_TK.options());
  }
  m.Follow(m.dispatched);
  plan.ready.WaitOn(m.device);
  m.BeforeWaiting();
  kernels::DispatchExpandParams p = {};
  p.group = m.group;
  p.plan = plan.data;
  p.x = Bf16Of(pending.x_TH);
  p.weights = FloatOf(pending.weights_TK);
  p.rows = Bf16Of(out.rows_NH);
  p.row_weights = FloatOf(out.weights_N);
  p.headers = pending.headers;
  p.layer = static_cast<int>(plan.layer);
  CheckKernel(kernels::DispatchExpand(p, CurrentStream()), "dispatch: expand");
  m.dispatched = CurrentPoint(m.device);
  if (pending.headers) plan.ready = CurrentPoint(m.device);
  // The inputs may be freed now, in the order of this stream.
  pending.pushed.WaitOn(m.device);
  return out;
}

std::unique_ptr<PendingCombine> PushDispatcher::BeginCombine(const DispatchPlan& base,
                                                             const at::Tensor& rows_NH,
                                                             const at::Tensor& dweights_PN) {
  Impl& m = *impl_;
  const PushPlan& plan = Cast(base);
  CheckInput(rows_NH, at::kBFloat16, {plan.num_rows, m.options.hidden}, "combine: rows");
  if (dweights_PN.defined()) {
    CheckInput(dweights_PN, at::kFloat, {dweights_PN.size(0), plan.num_rows},
               "combine: gradients of weights");
  }
  m.Check();
  auto pending = std::make_unique<PushCombine>();
  pending->plan = &plan;
  pending->rows_NH = rows_NH;
  pending->dweights_PN = dweights_PN;
  pending->pushed = m.stream.Run([&] {
    plan.ready.WaitOn(m.device);
    kernels::CombinePushParams p = {};
    p.group = m.group;
    p.plan = plan.data;
    p.rows = Bf16Of(rows_NH);
    p.row_partials = FloatOf(dweights_PN);
    p.num_partials = dweights_PN.defined() ? static_cast<int>(dweights_PN.size(0)) : 0;
    p.blocks = dweights_PN.defined() ? m.options.push_blocks : m.options.forward_combine_blocks;
    p.layer = static_cast<int>(plan.layer);
    CheckKernel(kernels::CombinePush(p, CurrentStream()), "combine: push");
  });
  return pending;
}

CombinedRows PushDispatcher::FinishCombine(std::unique_ptr<PendingCombine> base,
                                           const at::Tensor& residual_TH) {
  Impl& m = *impl_;
  m.Check();
  const auto& pending = static_cast<const PushCombine&>(*base);
  const PushPlan& plan = *pending.plan;
  if (residual_TH.defined()) {
    CheckInput(residual_TH, at::kBFloat16, {plan.num_tokens, m.options.hidden},
               "combine: residual");
  }
  CombinedRows out;
  out.sum_TH = at::empty({plan.num_tokens, m.options.hidden}, pending.rows_NH.options());
  if (pending.dweights_PN.defined()) {
    out.dweights_TK = at::empty({plan.num_tokens, m.options.top_k}, pending.dweights_PN.options());
  }
  m.Follow(m.combined);
  plan.ready.WaitOn(m.device);
  m.BeforeWaiting();
  kernels::CombineReduceParams p = {};
  p.group = m.group;
  p.plan = plan.data;
  p.rows = Bf16Of(pending.rows_NH);
  p.row_partials = FloatOf(pending.dweights_PN);
  p.num_partials =
      pending.dweights_PN.defined() ? static_cast<int>(pending.dweights_PN.size(0)) : 0;
  p.residual = Bf16Of(residual_TH);
  p.out = Bf16Of(out.sum_TH);
  p.copy_sums = FloatOf(out.dweights_TK);
  p.layer = static_cast<int>(plan.layer);
  CheckKernel(kernels::CombineReduce(p, CurrentStream()), "combine: reduce");
  m.combined = CurrentPoint(m.device);
  pending.pushed.WaitOn(m.device);
  return out;
}

bool PushDispatcher::MustRepeat() {
  Impl& m = *impl_;
  if (m.num_plans == 0) return false;
  m.last_plan.synchronize();
  m.Check();
  const int64_t needed =
      *std::max_element(m.needed_rows.data(), m.needed_rows.data() + m.num_plans);
  m.num_plans = 0;
  if (needed <= m.budget) return false;
  // An eighth more than now: batches differ.
  m.budget = std::min(RoundUp(needed + needed / 8), MostRows(m.options));
  ++m.num_repeats;
  return true;
}

}  // namespace switchyard
