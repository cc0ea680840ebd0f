#include <ATen/ATen.h>

#include "kernels/router_topk/router_topk.h"
#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/kernel_call.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops::on_cuda {
namespace {

bool Fits(const at::Tensor& logits_TE, int64_t top_k) {
  return HasKernels(logits_TE) && logits_TE.is_contiguous() && logits_TE.size(1) <= 512 &&
         top_k <= 16;
}

}  // namespace

bool ServesRouter(const at::Tensor& logits_TE, const RouterOptions& options) {
  return Fits(logits_TE, options.top_k) &&
         (options.weights_type == at::kBFloat16 || options.weights_type == at::kFloat);
}

bool ServesRouterBackward(const RouterChoice& choice) {
  return Fits(choice.logits_TE, choice.ids_TK.size(1));
}

RouterChoice RouterForward(const at::Tensor& logits_TE, const RouterOptions& options) {
  const int64_t tokens = logits_TE.size(0), experts = logits_TE.size(1);
  const at::TensorOptions wide = logits_TE.options().dtype(at::kFloat);
  const at::TensorOptions whole = logits_TE.options().dtype(at::kInt);
  RouterChoice out;
  out.logits_TE = logits_TE;
  out.ids_TK = at::empty({tokens, options.top_k}, whole);
  out.weights_TK = at::empty({tokens, options.top_k}, wide);
  out.by_expert.num_tokens = tokens;
  out.by_expert.top_k = options.top_k;
  out.by_expert.num_rows = tokens * options.top_k;
  out.by_expert.row_of_TK = at::empty({tokens * options.top_k}, whole);
  out.by_expert.offsets_E1 = at::empty({experts + 1}, whole);
  if (options.prob_sums) out.prob_sums_E = at::empty({experts}, wide);
  at::Tensor workspace = at::empty(
      {kernels::RouterWorkspaceBytes(tokens, static_cast<int>(experts))}, whole.dtype(at::kByte));
  kernels::RouterTopKParams p = {};
  p.logits = Bf16Of(logits_TE);
  p.ids = IntOf(out.ids_TK);
  p.weights = FloatOf(out.weights_TK);
  p.row_of = IntOf(out.by_expert.row_of_TK);
  p.offsets = IntOf(out.by_expert.offsets_E1);
  p.prob_sums = FloatOf(out.prob_sums_E);
  p.workspace = workspace.data_ptr();
  p.tokens = tokens;
  p.experts = static_cast<int>(experts);
  p.top_k = static_cast<int>(options.top_k);
  p.normalize = options.normalize;
  p.round_weights = options.weights_type == at::kBFloat16;
  CheckKernel(kernels::RouterTopK(p, CurrentStream()), "router");
  return out;
}

at::Tensor RouterBackward(const RouterChoice& choice, const at::Tensor& dweights_TK, bool normalize,
                          const at::Tensor& daux_E) {
  at::Tensor dlogits_TE = at::empty(choice.logits_TE.sizes(), choice.logits_TE.options());
  kernels::RouterTopKGradParams p = {};
  p.logits = Bf16Of(choice.logits_TE);
  p.ids = IntOf(choice.ids_TK);
  p.d_weights = FloatOf(dweights_TK);
  p.d_prob = FloatOf(daux_E);
  p.d_logits = Bf16Of(dlogits_TE);
  p.tokens = choice.logits_TE.size(0);
  p.experts = static_cast<int>(choice.logits_TE.size(1));
  p.top_k = static_cast<int>(choice.ids_TK.size(1));
  p.normalize = normalize;
  CheckKernel(kernels::RouterTopKGrad(p, CurrentStream()), "router backward");
  return dlogits_TE;
}

}  // namespace switchyard::ops::on_cuda
