#include "worker/trainer/ops/experts.h"

#include <ATen/ATen.h>

#include <vector>

#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/on_cuda.h"
#include "worker/trainer/ops/permute.h"
#include "worker/trainer/ops/swiglu.h"

namespace switchyard::ops {
namespace {

std::vector<int64_t> Rows(const at::Tensor& x_NI, const at::Tensor& offsets_E1) {
  return offsets_E1.defined() ? RowsPerExpert(offsets_E1) : std::vector<int64_t>{x_NI.size(0)};
}

}  // namespace

ExpertsUp ExpertsUpForward(const at::Tensor& x_NH, const at::Tensor& gate_up_E2FH,
                           const at::Tensor& weights_N, const at::Tensor& offsets_E1) {
#if defined(SY_CUDA)
  if (on_cuda::ServesExperts(x_NH, gate_up_E2FH.size(0), gate_up_E2FH.size(2),
                             gate_up_E2FH.size(1) / 2)) {
    return on_cuda::ExpertsUpForward(x_NH, gate_up_E2FH, weights_N, offsets_E1);
  }
#endif
  ExpertsUp out;
  out.z_N2F = GroupedLinearForward(x_NH, gate_up_E2FH, Rows(x_NH, offsets_E1));
  out.h_NF = SwigluForward(out.z_N2F, weights_N);
  return out;
}

at::Tensor ExpertsDownForward(const at::Tensor& h_NF, const at::Tensor& down_EHF,
                              const at::Tensor& offsets_E1) {
#if defined(SY_CUDA)
  if (on_cuda::ServesExperts(h_NF, down_EHF.size(0), down_EHF.size(1), down_EHF.size(2))) {
    return on_cuda::ExpertsDownForward(h_NF, down_EHF, offsets_E1);
  }
#endif
  return GroupedLinearForward(h_NF, down_EHF, Rows(h_NF, offsets_E1));
}

ExpertsDownGradients ExpertsDownBackward(const at::Tensor& dy_NH, const at::Tensor& z_N2F,
                                         const at::Tensor& down_EHF, const at::Tensor& weights_N,
                                         const at::Tensor& offsets_E1) {
#if defined(SY_CUDA)
  if (on_cuda::ServesExperts(dy_NH, down_EHF.size(0), down_EHF.size(1), down_EHF.size(2))) {
    return on_cuda::ExpertsDownBackward(dy_NH, z_N2F, down_EHF, weights_N, offsets_E1);
  }
#endif
  const at::Tensor dh_NF = GroupedLinearBackwardInput(dy_NH, down_EHF, Rows(dy_NH, offsets_E1));
  SwigluGradients gradients = SwigluBackward(dh_NF, z_N2F, weights_N);
  ExpertsDownGradients out;
  out.dz_N2F = std::move(gradients.dz_R2F);
  out.h_NF = SwigluForward(z_N2F, weights_N);
  if (weights_N.defined()) out.dweights_PN = gradients.dscale_R.unsqueeze(0);
  return out;
}

at::Tensor ExpertsUpBackward(const at::Tensor& dz_N2F, const at::Tensor& gate_up_E2FH,
                             const at::Tensor& offsets_E1) {
#if defined(SY_CUDA)
  if (on_cuda::ServesExperts(dz_N2F, gate_up_E2FH.size(0), gate_up_E2FH.size(2),
                             gate_up_E2FH.size(1) / 2)) {
    return on_cuda::ExpertsUpBackward(dz_N2F, gate_up_E2FH, offsets_E1);
  }
#endif
  return GroupedLinearBackwardInput(dz_N2F, gate_up_E2FH, Rows(dz_N2F, offsets_E1));
}

void ExpertsBackwardWeight(const at::Tensor& dy_NO, const at::Tensor& x_NI,
                           const at::Tensor& offsets_E1, at::Tensor dweight_EOI, bool accumulate) {
#if defined(SY_CUDA)
  if (on_cuda::ServesExperts(dy_NO, dweight_EOI.size(0), dweight_EOI.size(1),
                             dweight_EOI.size(2))) {
    return on_cuda::ExpertsBackwardWeight(dy_NO, x_NI, offsets_E1, dweight_EOI, accumulate);
  }
#endif
  GroupedLinearBackwardWeight(dy_NO, x_NI, Rows(dy_NO, offsets_E1), dweight_EOI, accumulate);
}

}  // namespace switchyard::ops
