#include "worker/trainer/ops/cross_entropy.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops {
namespace {

// n tokens of a chunk. Returns the sum of their losses, in double. `dhidden_nH` and the weight's
// gradient are wanted with `gradients`.
at::Tensor Chunk(const at::Tensor& hidden_nH, const at::Tensor& weight_VH,
                 const at::Tensor& targets_n, const CrossEntropyGradients* gradients,
                 bool accumulate, at::Tensor* dhidden_nH) {
  const at::ScalarType type = AccumulateType(hidden_nH);
  const at::Tensor targets_n1 = targets_n.to(at::kLong).unsqueeze(1);
  at::Tensor log_probs_nV = at::log_softmax(LinearForward(hidden_nH, weight_VH, {}), 1, type);
  at::Tensor sum = -log_probs_nV.gather(1, targets_n1).sum(at::kDouble);
  if (gradients != nullptr) {
    at::Tensor dlogits_nV = log_probs_nV.exp_();
    dlogits_nV.scatter_add_(
        1, targets_n1, at::full({1, 1}, -1.0, dlogits_nV.options()).expand({targets_n.size(0), 1}));
    dlogits_nV = dlogits_nV.mul_(gradients->scale).to(hidden_nH.scalar_type());
    *dhidden_nH = LinearBackwardInput(dlogits_nV, weight_VH);
    LinearBackwardWeight(dlogits_nV, hidden_nH, gradients->dweight_VH, accumulate);
  }
  return sum;
}

}  // namespace

at::Tensor LinearCrossEntropy(const at::Tensor& hidden_TH, const at::Tensor& weight_VH,
                              const Targets& targets, int64_t chunk_tokens,
                              const CrossEntropyGradients* gradients) {
  const int64_t supervised = targets.ids_S.numel();
  TORCH_CHECK(
      targets.ids_S.dim() == 1 &&
          (targets.rows_S.defined() ? targets.rows_S.numel() : hidden_TH.size(0)) == supervised,
      "cross_entropy: ", supervised, " targets for hidden states ", hidden_TH.sizes());
  TORCH_CHECK(chunk_tokens > 0, "cross_entropy: chunk of ", chunk_tokens, " tokens");
  at::Tensor sum = at::zeros({}, hidden_TH.options().dtype(at::kDouble));
  if (gradients != nullptr && targets.rows_S.defined()) gradients->dhidden_TH.zero_();
  if (supervised == 0) {
    if (gradients != nullptr && !gradients->accumulate) gradients->dweight_VH.zero_();
    return sum;
  }
#if defined(SY_CUDA)
  if (on_cuda::ServesCrossEntropy(hidden_TH, weight_VH)) {
    return on_cuda::LinearCrossEntropy(hidden_TH, weight_VH, targets, chunk_tokens, gradients);
  }
#endif
  for (int64_t begin = 0; begin < supervised; begin += chunk_tokens) {
    const int64_t n = std::min(chunk_tokens, supervised - begin);
    at::Tensor rows_n, hidden_nH, dhidden_nH;
    if (targets.rows_S.defined()) {
      rows_n = targets.rows_S.narrow(0, begin, n);
      hidden_nH = hidden_TH.index_select(0, rows_n);
    } else {
      hidden_nH = hidden_TH.narrow(0, begin, n);
    }
    sum.add_(Chunk(hidden_nH, weight_VH, targets.ids_S.narrow(0, begin, n), gradients,
                   gradients != nullptr && (gradients->accumulate || begin > 0), &dhidden_nH));
    if (gradients == nullptr) continue;
    if (rows_n.defined()) {
      gradients->dhidden_TH.index_copy_(0, rows_n.to(at::kLong), dhidden_nH);
    } else {
      gradients->dhidden_TH.narrow(0, begin, n).copy_(dhidden_nH);
    }
  }
  return sum;
}

}  // namespace switchyard::ops
