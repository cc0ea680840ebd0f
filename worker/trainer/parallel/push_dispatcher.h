// Token dispatch over NVLink: rows are pushed straight into the peers' memory, and the host never
// learns a count (kernels/dispatch/dispatch.h has the protocol). Only in builds with SY_CUDA.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_PUSH_DISPATCHER_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_PUSH_DISPATCHER_H_

#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "worker/trainer/parallel/symmetric_memory.h"
#include "worker/trainer/parallel/token_dispatcher.h"

namespace switchyard {

// Equal on all ranks but for `rank`.
struct PushOptions {
  int64_t num_experts = 0, top_k = 0, hidden = 0;
  int64_t max_tokens = 0;  // of any rank in any call
  int rank = 0;            // in the group
  std::vector<int> ranks;  // of the group, as errors shall name them
  // The longest that one rank waits for another, kernels and all that delays their launch.
  absl::Duration timeout = absl::Seconds(600);
  // Rows kept for this rank's experts, in units of the mean when all ranks have max_tokens; grows
  // when a forward needs more (MustRepeat).
  double row_budget = 1.25;
  // Streaming multiprocessors that a push takes from the computation beside it.
  int push_blocks = 16;
  // Of the push of a combine without gradients of weights: the forward's, which has no computation
  // beside it and sums rows before it sends.
  int forward_combine_blocks = 64;
  // Called on the host before a kernel is launched that waits for what peers send; null: Make's
  // choice. Ranks that share a device must all come here first, so that what is waited for has
  // been launched. Else a rank whose host waits for the device (to load a module, say) would wait
  // for the kernel that waits for its own next launch.
  std::function<void()> before_waiting;
};

class PushDispatcher;
struct PushDispatcherResult {
  std::unique_ptr<PushDispatcher> dispatcher;  // null: there is none, on any rank
  std::string explanation;                     // what it goes through, or what is in the way
};

// Gives the bits of CollectiveDispatcher over the same ranks. bf16 rows, fp32 weights, contiguous.
// Pushes travel on a high-priority stream of its own; everything else is queued on the caller's
// current stream. Nothing waits for the device but MustRepeat and the destructor, which both end
// when the timeout does.
//
// Rows: every plan's buffers have the same number of rows, the budget; a plan that needs more
// computes nonsense, memory-safely, until MustRepeat has been asked.
// Errors: CommError as soon as the host sees that a wait of a kernel has ended in vain: it names
// ranks, MoE layer (counted from 0 since the last MustRepeat) and phase. Kernels then return at
// once; the dispatcher cannot be used again. A device that has only fallen behind is no error.
class PushDispatcher final : public TokenDispatcher {
 public:
  // Why these sizes cannot be served; empty: they can.
  static std::string WhyNot(const PushOptions& options);
  // Bytes of each rank's block.
  static int64_t MemoryBytes(const PushOptions& options);

  // Collective over `ep`, which it borrows for the dispatcher's life: sets up memory, then the
  // dispatcher. All ranks get one, or none. Ranks inside one process, which may share a device,
  // meet before each wait.
  static PushDispatcherResult Make(Comm& ep, PushOptions options, c10::Device device);

  // `memory` is fresh. On the current device.
  PushDispatcher(const PushOptions& options, c10::Device device,
                 std::unique_ptr<SymmetricMemory> memory);
  // Gives up when an exception unwinds: else it would wait for peers that wait for this rank.
  ~PushDispatcher() override;

  int64_t num_local_experts() const override;
  int sms_in_flight() const override;
  std::unique_ptr<DispatchPlan> Plan(const ops::Permutation& by_expert) override;
  std::unique_ptr<PendingDispatch> BeginDispatch(const DispatchPlan& plan, const at::Tensor& x_TH,
                                                 const at::Tensor& weights_TK) override;
  DispatchedRows FinishDispatch(std::unique_ptr<PendingDispatch> pending) override;
  std::unique_ptr<PendingCombine> BeginCombine(const DispatchPlan& plan, const at::Tensor& rows_NH,
                                               const at::Tensor& dweights_PN) override;
  CombinedRows FinishCombine(std::unique_ptr<PendingCombine> pending,
                             const at::Tensor& residual_TH) override;
  bool MustRepeat() override;
  void CheckHealth() override;
  void GiveUp() noexcept override;
  int64_t num_repeats() const override;
  int64_t row_budget() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_PUSH_DISPATCHER_H_
