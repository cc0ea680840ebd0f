#include "worker/trainer/models/mlp.h"

#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/swiglu.h"

namespace switchyard {

at::Tensor MlpForward(const MlpParameters& weights, const at::Tensor& x_TH, MlpSaved* saved) {
  const at::Tensor z_T2F = ops::LinearForward(x_TH, weights.gate_up_2FH, {});
  if (saved != nullptr) saved->z_T2F = z_T2F;
  return ops::LinearForward(ops::SwigluForward(z_T2F, {}), weights.down_HF, {});
}

void MlpRecompute(const MlpParameters& weights, const at::Tensor& x_TH, MlpSaved* saved) {
  saved->z_T2F = ops::LinearForward(x_TH, weights.gate_up_2FH, {});
}

at::Tensor MlpBackward(const MlpParameters& weights, const at::Tensor& dy_TH,
                       const at::Tensor& x_TH, const MlpSaved& saved,
                       const MlpParameters& gradients) {
  ops::LinearBackwardWeight(dy_TH, ops::SwigluForward(saved.z_T2F, {}), gradients.down_HF);
  const at::Tensor dz_T2F =
      ops::SwigluBackward(ops::LinearBackwardInput(dy_TH, weights.down_HF), saved.z_T2F, {}).dz_R2F;
  ops::LinearBackwardWeight(dz_T2F, x_TH, gradients.gate_up_2FH);
  return ops::LinearBackwardInput(dz_T2F, weights.gate_up_2FH);
}

}  // namespace switchyard
