#include "worker/trainer/ops/cross_entropy.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/linear.h"

namespace switchyard::ops {
namespace {

// Where the gradient goes; all undefined when none is wanted.
struct Gradients {
  double scale = 0;
  at::Tensor dhidden_TH;
  at::Tensor dweight_VH;
};

// n tokens of a chunk. Returns the sum of their losses, in double.
double Chunk(const at::Tensor& hidden_nH, const at::Tensor& weight_VH, const at::Tensor& targets_n,
             const at::Tensor& rows_n, const Gradients& gradients) {
  const at::ScalarType type = AccumulateType(hidden_nH);
  const at::Tensor targets_n1 = targets_n.unsqueeze(1);
  at::Tensor log_probs_nV = at::log_softmax(LinearForward(hidden_nH, weight_VH, {}), 1, type);
  const double sum = -log_probs_nV.gather(1, targets_n1).sum(at::kDouble).item<double>();
  if (gradients.dweight_VH.defined()) {
    at::Tensor dlogits_nV = log_probs_nV.exp_();
    dlogits_nV.scatter_add_(
        1, targets_n1, at::full({1, 1}, -1.0, dlogits_nV.options()).expand({targets_n.size(0), 1}));
    dlogits_nV = dlogits_nV.mul_(gradients.scale).to(hidden_nH.scalar_type());
    at::Tensor dhidden_TH = gradients.dhidden_TH;
    dhidden_TH.index_copy_(0, rows_n, LinearBackwardInput(dlogits_nV, weight_VH));
    LinearBackwardWeight(dlogits_nV, hidden_nH, gradients.dweight_VH);
  }
  return sum;
}

CrossEntropySums Run(const at::Tensor& hidden_TH, const at::Tensor& weight_VH,
                     const at::Tensor& targets_T, int64_t chunk_tokens,
                     const Gradients& gradients) {
  TORCH_CHECK(targets_T.dim() == 1 && targets_T.size(0) == hidden_TH.size(0),
              "cross_entropy: ", hidden_TH.size(0), " tokens, targets ", targets_T.sizes());
  TORCH_CHECK(chunk_tokens > 0, "cross_entropy: chunk of ", chunk_tokens, " tokens");
  const at::Tensor rows = targets_T.ne(-100).nonzero().squeeze(1);
  CrossEntropySums out;
  out.supervised = rows.size(0);
  for (int64_t begin = 0; begin < out.supervised; begin += chunk_tokens) {
    const at::Tensor rows_n = rows.narrow(0, begin, std::min(chunk_tokens, out.supervised - begin));
    out.sum += Chunk(hidden_TH.index_select(0, rows_n), weight_VH,
                     targets_T.index_select(0, rows_n), rows_n, gradients);
  }
  return out;
}

}  // namespace

CrossEntropySums LinearCrossEntropy(const at::Tensor& hidden_TH, const at::Tensor& weight_VH,
                                    const at::Tensor& targets_T, int64_t chunk_tokens) {
  return Run(hidden_TH, weight_VH, targets_T, chunk_tokens, {});
}

CrossEntropySums LinearCrossEntropyWithGradient(const at::Tensor& hidden_TH,
                                                const at::Tensor& weight_VH,
                                                const at::Tensor& targets_T, int64_t chunk_tokens,
                                                double scale, at::Tensor dhidden_TH,
                                                at::Tensor dweight_VH) {
  dhidden_TH.zero_();
  return Run(hidden_TH, weight_VH, targets_T, chunk_tokens, {scale, dhidden_TH, dweight_VH});
}

}  // namespace switchyard::ops
