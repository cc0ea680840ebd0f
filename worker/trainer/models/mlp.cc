#include "worker/trainer/models/mlp.h"

#include <ATen/ATen.h>

#include "worker/trainer/ops/experts.h"
#include "worker/trainer/ops/linear.h"

namespace switchyard {
namespace {

// The dense layer is one expert that all tokens go to.
ops::ExpertsUp Up(const MlpParameters& weights, const at::Tensor& x_TH) {
  return ops::ExpertsUpForward(x_TH, weights.gate_up_2FH.unsqueeze(0), {}, {});
}

}  // namespace

at::Tensor MlpForward(const MlpParameters& weights, const at::Tensor& x_TH, MlpSaved* saved) {
  const ops::ExpertsUp up = Up(weights, x_TH);
  if (saved != nullptr) saved->z_T2F = up.z_N2F;
  return ops::LinearForward(up.h_NF, weights.down_HF, {});
}

void MlpRecompute(const MlpParameters& weights, const at::Tensor& x_TH, MlpSaved* saved) {
  saved->z_T2F = Up(weights, x_TH).z_N2F;
}

at::Tensor MlpBackward(const MlpParameters& weights, const at::Tensor& dy_TH,
                       const at::Tensor& x_TH, const MlpSaved& saved,
                       const MlpParameters& gradients, bool accumulate) {
  const ops::ExpertsDownGradients down =
      ops::ExpertsDownBackward(dy_TH, saved.z_T2F, weights.down_HF.unsqueeze(0), {}, {});
  ops::LinearBackwardWeight(dy_TH, down.h_NF, gradients.down_HF, accumulate);
  ops::LinearBackwardWeight(down.dz_N2F, x_TH, gradients.gate_up_2FH, accumulate);
  return ops::LinearBackwardInput(down.dz_N2F, weights.gate_up_2FH);
}

}  // namespace switchyard
