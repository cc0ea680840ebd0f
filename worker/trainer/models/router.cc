#include "worker/trainer/models/router.h"

#include <ATen/ATen.h>

#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/linear.h"

namespace switchyard {

ops::RouterChoice RouterForward(const BatchContext& context, const at::Tensor& weight_EH,
                                const at::Tensor& x_TH) {
  const at::ScalarType type = context.router_fp32 ? ops::AccumulateType(x_TH) : x_TH.scalar_type();
  ops::RouterOptions options;
  options.top_k = context.config.top_k;
  options.normalize = context.config.norm_topk_prob;
  options.weights_type = x_TH.scalar_type();
  options.prob_sums = context.prob_sums;
  return ops::RouterForward(ops::LinearForward(x_TH.to(type), weight_EH.to(type), {}), options);
}

void RouterBackward(const BatchContext& context, const at::Tensor& weight_EH,
                    const at::Tensor& dweights_TK, const at::Tensor& daux_E, const at::Tensor& x_TH,
                    const ops::RouterChoice& choice, at::Tensor dx_TH, at::Tensor dweight_EH,
                    bool accumulate) {
  const at::Tensor dlogits_TE =
      ops::RouterBackward(choice, dweights_TK, context.config.norm_topk_prob, daux_E);
  const at::ScalarType type = dlogits_TE.scalar_type();
  ops::LinearBackwardWeight(dlogits_TE, x_TH.to(type), dweight_EH, accumulate);
  if (type == dx_TH.scalar_type()) {
    dx_TH.addmm_(dlogits_TE, weight_EH);
  } else {
    dx_TH.add_(ops::LinearBackwardInput(dlogits_TE, weight_EH.to(type)));
  }
}

}  // namespace switchyard
