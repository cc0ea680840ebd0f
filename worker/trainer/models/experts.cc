#include "worker/trainer/models/experts.h"

#include <ATen/ATen.h>

#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/swiglu.h"

namespace switchyard {

at::Tensor ExpertsGateUp(const ExpertParameters& weights, const at::Tensor& rows_NH,
                         const std::vector<int64_t>& rows_per_expert) {
  return ops::GroupedLinearForward(rows_NH, weights.gate_up_E2FH, rows_per_expert);
}

at::Tensor ExpertsDown(const ExpertParameters& weights, const at::Tensor& z_N2F,
                       const at::Tensor& weights_N, const std::vector<int64_t>& rows_per_expert) {
  return ops::GroupedLinearForward(ops::SwigluForward(z_N2F, weights_N), weights.down_EHF,
                                   rows_per_expert);
}

ExpertsGradients ExpertsBackward(const ExpertParameters& weights, at::Tensor dy_NH,
                                 const std::function<at::Tensor()>& rows, at::Tensor z_N2F,
                                 const at::Tensor& weights_N,
                                 const std::vector<int64_t>& rows_per_expert,
                                 const ExpertParameters& gradients) {
  ops::GroupedLinearBackwardWeight(dy_NH, ops::SwigluForward(z_N2F, weights_N), rows_per_expert,
                                   gradients.down_EHF);
  at::Tensor dhidden_NF = ops::GroupedLinearBackwardInput(dy_NH, weights.down_EHF, rows_per_expert);
  dy_NH.reset();
  const ops::SwigluGradients hidden = ops::SwigluBackward(dhidden_NF, z_N2F, weights_N);
  dhidden_NF.reset();
  z_N2F.reset();
  ops::GroupedLinearBackwardWeight(hidden.dz_R2F, rows(), rows_per_expert, gradients.gate_up_E2FH);
  return {ops::GroupedLinearBackwardInput(hidden.dz_R2F, weights.gate_up_E2FH, rows_per_expert),
          hidden.dscale_R};
}

}  // namespace switchyard
