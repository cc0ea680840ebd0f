#include "worker/trainer/models/router.h"

#include <ATen/ATen.h>

#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/linear.h"

namespace switchyard {
namespace {

at::ScalarType LogitsType(const BatchContext& context, const at::Tensor& x_TH) {
  return context.router_fp32 ? ops::AccumulateType(x_TH) : x_TH.scalar_type();
}

at::Tensor Logits(const BatchContext& context, const at::Tensor& weight_EH,
                  const at::Tensor& x_TH) {
  const at::ScalarType type = LogitsType(context, x_TH);
  return ops::LinearForward(x_TH.to(type), weight_EH.to(type), {});
}

}  // namespace

ops::RouterChoice RouterForward(const BatchContext& context, const at::Tensor& weight_EH,
                                const at::Tensor& x_TH) {
  return ops::RouterForward(Logits(context, weight_EH, x_TH), context.config.top_k,
                            context.config.norm_topk_prob);
}

ops::RouterChoice RouterReplay(const BatchContext& context, const at::Tensor& weight_EH,
                               const at::Tensor& x_TH, const at::Tensor& ids_TK) {
  return ops::RouterReplay(Logits(context, weight_EH, x_TH), ids_TK, context.config.norm_topk_prob);
}

at::Tensor RouterBackward(const BatchContext& context, const at::Tensor& weight_EH,
                          const at::Tensor& dweights_TK, const at::Tensor& daux_E,
                          const at::Tensor& x_TH, const ops::RouterChoice& choice,
                          at::Tensor dweight_EH) {
  const at::ScalarType type = LogitsType(context, x_TH);
  const at::Tensor dlogits_TE = ops::RouterBackward(dweights_TK, choice.probs_TE, choice.ids_TK,
                                                    context.config.norm_topk_prob, daux_E, type);
  ops::LinearBackwardWeight(dlogits_TE, x_TH, dweight_EH);
  return ops::LinearBackwardInput(dlogits_TE, weight_EH.to(type)).to(x_TH.scalar_type());
}

}  // namespace switchyard
