#include "worker/trainer/ops/attention_cuda.h"

#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>

#include <tuple>

namespace switchyard::ops::on_cuda {
namespace {

// ATen's FlashAttention asks a process-wide setting whether its backward shall be deterministic.
// Sets it, without the poisoning of new tensors that goes with it, for the life of this object.
class DeterministicCall {
 public:
  explicit DeterministicCall(bool wanted)
      : context_(at::globalContext()),
        algorithms_(context_.deterministicAlgorithms()),
        warn_only_(context_.deterministicAlgorithmsWarnOnly()),
        fill_(context_.deterministicFillUninitializedMemory()) {
    context_.setDeterministicFillUninitializedMemory(false);
    context_.setDeterministicAlgorithms(wanted, /*warn_only=*/false);
  }
  ~DeterministicCall() {
    context_.setDeterministicAlgorithms(algorithms_, warn_only_);
    context_.setDeterministicFillUninitializedMemory(fill_);
  }
  DeterministicCall(const DeterministicCall&) = delete;
  DeterministicCall& operator=(const DeterministicCall&) = delete;

 private:
  at::Context& context_;
  bool algorithms_, warn_only_, fill_;
};

// Tokens before the own one that are visible; FlashAttention's "no window" is an absent value.
std::optional<int64_t> WindowLeft(const AttentionInputs& in) {
  if (in.window == 0 || in.window >= in.plan.max_length) return std::nullopt;
  return in.window - 1;
}
std::optional<int64_t> WindowRight(const AttentionInputs& in) {
  return WindowLeft(in).has_value() ? std::optional<int64_t>(0) : std::nullopt;
}

bool FlashServes(const AttentionInputs& in) {
  return in.q_TNd.size(2) % 8 == 0 && in.q_TNd.size(2) <= 256;
}

void CheckFlash(const AttentionInputs& in) {
  TORCH_CHECK(FlashServes(in), "attention: FlashAttention takes head_dim up to 256 in steps of 8, ",
              "not ", in.q_TNd.size(2));
}

}  // namespace

AttentionOutput FlashAttentionForward(const AttentionInputs& in) {
  CheckFlash(in);
  const c10::cuda::CUDAGuard guard(in.q_TNd.device());
  const auto results = at::_flash_attention_forward(
      in.q_TNd, in.k_TMd, in.v_TMd, in.plan.offsets_B1, in.plan.offsets_B1, in.plan.max_length,
      in.plan.max_length, /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false,
      in.scale, WindowLeft(in), WindowRight(in));
  return {std::get<0>(results), std::get<1>(results).t()};
}

AttentionGradients FlashAttentionBackward(const AttentionInputs& in, const at::Tensor& dout_TNd,
                                          const AttentionOutput& saved, bool deterministic) {
  CheckFlash(in);
  const c10::cuda::CUDAGuard guard(in.q_TNd.device());
  const DeterministicCall setting(deterministic);
  // FlashAttention splits a deterministic sum over few documents more, and is several times faster
  // then. A graph must fit other documents than those it is captured with.
  const bool captured =
      c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  const int64_t documents = captured ? in.plan.max_documents : in.plan.num_documents;
  const at::Tensor offsets_B1 = in.plan.offsets_B1.narrow(0, 0, documents + 1);
  // The state of a random generator that no dropout reads.
  const at::Tensor no_state = at::empty({2}, in.plan.offsets_B1.options().dtype(at::kLong));
  const auto [dq, dk, dv] = at::_flash_attention_backward(
      dout_TNd, in.q_TNd, in.k_TMd, in.v_TMd, saved.out_TNd, saved.log_sum_exp_TN.t().contiguous(),
      offsets_B1, offsets_B1, in.plan.max_length, in.plan.max_length, /*dropout_p=*/0.0,
      /*is_causal=*/true, no_state, no_state, in.scale, WindowLeft(in), WindowRight(in));
  return {dq, dk, dv};
}

AttentionOutput AttentionForward(const AttentionInputs& in) {
  AttentionOutput out;
  const std::string refusal = CudnnAttentionForward(in, &out);
  if (refusal.empty()) return out;
  TORCH_CHECK(FlashServes(in), "attention: no kernel for head_dim ", in.q_TNd.size(2),
              " on CUDA: ", refusal, "; FlashAttention takes up to 256 in steps of 8");
  return FlashAttentionForward(in);
}

AttentionGradients AttentionBackward(const AttentionInputs& in, const at::Tensor& dout_TNd,
                                     const AttentionOutput& saved) {
  // What FlashAttention's forward saved, its backward takes.
  const bool flash = in.plan.deterministic || !saved.log_sum_exp_TN.is_contiguous();
  AttentionGradients out;
  if (flash || !CudnnAttentionBackward(in, dout_TNd, saved, &out).empty()) {
    return FlashAttentionBackward(in, dout_TNd, saved, in.plan.deterministic);
  }
  return out;
}

}  // namespace switchyard::ops::on_cuda
