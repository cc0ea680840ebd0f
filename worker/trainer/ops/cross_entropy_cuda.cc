#include <ATen/ATen.h>

#include <algorithm>

#include "kernels/cross_entropy/cross_entropy.h"
#include "worker/trainer/ops/cross_entropy.h"
#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/kernel_call.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops::on_cuda {
namespace {

template <class Out>
void Run(const at::Tensor& hidden_SH, const at::Tensor& weight_VH, const at::Tensor& ids_S,
         int64_t chunk, const CrossEntropyGradients* gradients, const at::Tensor& loss_S,
         const at::Tensor& dhidden_SH, Out* dweight) {
  const int64_t hidden = hidden_SH.size(1), vocabulary = weight_VH.size(0);
  at::Tensor workspace =
      at::empty({kernels::LinearCrossEntropyWorkspaceBytes(chunk, hidden, vocabulary)},
                hidden_SH.options().dtype(at::kByte));
  at::Tensor scale;
  if (gradients != nullptr) {
    scale = at::full({}, gradients->scale, hidden_SH.options().dtype(at::kFloat));
  }
  kernels::LinearCrossEntropyParams<Out> p = {};
  p.h = Bf16Of(hidden_SH);
  p.w = Bf16Of(weight_VH);
  p.labels = IntOf(ids_S);
  p.scale = FloatOf(scale);
  p.loss = FloatOf(loss_S);
  p.dh = Bf16Of(dhidden_SH);
  p.dw = dweight;
  p.workspace = workspace.data_ptr();
  p.tokens = hidden_SH.size(0);
  p.hidden = static_cast<int>(hidden);
  p.vocabulary = static_cast<int>(vocabulary);
  p.chunk = static_cast<int>(chunk);
  p.accumulate = gradients != nullptr && gradients->accumulate;
  CheckKernel(kernels::LinearCrossEntropy(p, CurrentStream()), "cross_entropy");
}

}  // namespace

bool ServesCrossEntropy(const at::Tensor& hidden_TH, const at::Tensor& weight_VH) {
  return HasKernels(hidden_TH) && hidden_TH.is_contiguous() && hidden_TH.size(1) % 8 == 0 &&
         weight_VH.size(0) % 8 == 0 && weight_VH.size(0) <= 327680;
}

at::Tensor LinearCrossEntropy(const at::Tensor& hidden_TH, const at::Tensor& weight_VH,
                              const Targets& targets, int64_t chunk_tokens,
                              const CrossEntropyGradients* gradients) {
  const bool some = targets.rows_S.defined();
  const int64_t supervised = targets.ids_S.numel();
  const int64_t chunk = std::min(chunk_tokens, supervised);
  const at::Tensor hidden_SH = some ? hidden_TH.index_select(0, targets.rows_S) : hidden_TH;
  const at::Tensor loss_S = at::empty({supervised}, hidden_TH.options().dtype(at::kFloat));
  if (gradients == nullptr) {
    Run<float>(hidden_SH, weight_VH, targets.ids_S, chunk, nullptr, loss_S, {}, nullptr);
    return loss_S.sum(at::kDouble);
  }
  at::Tensor dhidden_SH =
      some ? at::empty(hidden_SH.sizes(), hidden_SH.options()) : gradients->dhidden_TH;
  const at::Tensor& dweight_VH = gradients->dweight_VH;
  if (dweight_VH.scalar_type() == at::kFloat) {
    Run(hidden_SH, weight_VH, targets.ids_S, chunk, gradients, loss_S, dhidden_SH,
        FloatOf(dweight_VH));
  } else {
    Run(hidden_SH, weight_VH, targets.ids_S, chunk, gradients, loss_S, dhidden_SH,
        Bf16Of(dweight_VH));
  }
  if (some) gradients->dhidden_TH.index_copy_(0, targets.rows_S.to(at::kLong), dhidden_SH);
  return loss_S.sum(at::kDouble);
}

}  // namespace switchyard::ops::on_cuda
