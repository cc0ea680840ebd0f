#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContextLight.h>

#include <algorithm>

#include "kernels/grouped_gemm/grouped_gemm.h"
#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/kernel_call.h"
#include "worker/trainer/ops/on_cuda.h"
#include "worker/trainer/ops/spare_sms.h"

namespace switchyard::ops::on_cuda {
namespace {

int Dim(const at::Tensor& tensor, int64_t dim) { return static_cast<int>(tensor.size(dim)); }

// CTAs of a product; 0: as many as the device has SMs.
int NumSms() {
  const int spare = SpareSms::Now();
  if (spare == 0) return 0;
  return std::max(1, at::cuda::getCurrentDeviceProperties()->multiProcessorCount - spare);
}

}  // namespace

bool ServesExperts(const at::Tensor& x_NI, int64_t experts, int64_t hidden, int64_t ffn) {
  if (!HasKernels(x_NI)) return false;
  TORCH_CHECK(experts <= 512 && hidden % 8 == 0 && ffn % 8 == 0,
              "experts: in bf16 on a GPU hidden and ffn sizes must be multiples of 8, experts at ",
              "most 512; got hidden ", hidden, ", ffn ", ffn, ", experts ", experts);
  TORCH_CHECK(x_NI.is_contiguous(), "bug: experts: rows ", x_NI.sizes(), " with strides ",
              x_NI.strides());
  return true;
}

ExpertsUp ExpertsUpForward(const at::Tensor& x_NH, const at::Tensor& gate_up_E2FH,
                           const at::Tensor& weights_N, const at::Tensor& offsets_E1) {
  const int64_t rows = x_NH.size(0), ffn = gate_up_E2FH.size(1) / 2;
  ExpertsUp out = {at::empty({rows, 2 * ffn}, x_NH.options()),
                   at::empty({rows, ffn}, x_NH.options())};
  kernels::GroupedUpProjectionParams p = {};
  p.x = Bf16Of(x_NH);
  p.w1 = Bf16Of(gate_up_E2FH);
  p.row_weight = FloatOf(weights_N);
  p.z = Bf16Of(out.z_N2F);
  p.h = Bf16Of(out.h_NF);
  p.offsets = IntOf(offsets_E1);
  p.max_rows = rows;
  p.experts = Dim(gate_up_E2FH, 0);
  p.hidden = Dim(x_NH, 1);
  p.ffn = static_cast<int>(ffn);
  p.num_sms = NumSms();
  CheckKernel(kernels::GroupedUpProjection(p, CurrentStream()), "experts: up projection");
  return out;
}

at::Tensor ExpertsDownForward(const at::Tensor& h_NF, const at::Tensor& down_EHF,
                              const at::Tensor& offsets_E1) {
  at::Tensor y_NH = at::empty({h_NF.size(0), down_EHF.size(1)}, h_NF.options());
  kernels::GroupedLinearParams p = {};
  p.a = Bf16Of(h_NF);
  p.b = Bf16Of(down_EHF);
  p.out = Bf16Of(y_NH);
  p.offsets = IntOf(offsets_E1);
  p.max_rows = h_NF.size(0);
  p.experts = Dim(down_EHF, 0);
  p.k = Dim(down_EHF, 2);
  p.n = Dim(down_EHF, 1);
  p.num_sms = NumSms();
  CheckKernel(kernels::GroupedLinear(p, CurrentStream()), "experts: down projection");
  return y_NH;
}

ExpertsDownGradients ExpertsDownBackward(const at::Tensor& dy_NH, const at::Tensor& z_N2F,
                                         const at::Tensor& down_EHF, const at::Tensor& weights_N,
                                         const at::Tensor& offsets_E1) {
  const int64_t rows = dy_NH.size(0), ffn = down_EHF.size(2);
  ExpertsDownGradients out;
  out.dz_N2F = at::empty(z_N2F.sizes(), z_N2F.options());
  out.h_NF = at::empty({rows, ffn}, z_N2F.options());
  if (weights_N.defined()) {
    out.dweights_PN =
        at::empty({kernels::CeilDiv(ffn, kernels::kDownGradColumns), rows}, weights_N.options());
  }
  kernels::GroupedDownGradParams p = {};
  p.dy = Bf16Of(dy_NH);
  p.w2 = Bf16Of(down_EHF);
  p.z = Bf16Of(z_N2F);
  p.row_weight = FloatOf(weights_N);
  p.dz = Bf16Of(out.dz_N2F);
  p.h = Bf16Of(out.h_NF);
  p.dp_partial = FloatOf(out.dweights_PN);
  p.offsets = IntOf(offsets_E1);
  p.max_rows = rows;
  p.experts = Dim(down_EHF, 0);
  p.hidden = Dim(down_EHF, 1);
  p.ffn = static_cast<int>(ffn);
  p.num_sms = NumSms();
  CheckKernel(kernels::GroupedDownGrad(p, CurrentStream()), "experts: down gradient");
  return out;
}

at::Tensor ExpertsUpBackward(const at::Tensor& dz_N2F, const at::Tensor& gate_up_E2FH,
                             const at::Tensor& offsets_E1) {
  at::Tensor dx_NH = at::empty({dz_N2F.size(0), gate_up_E2FH.size(2)}, dz_N2F.options());
  kernels::GroupedLinearGradParams p = {};
  p.a = Bf16Of(dz_N2F);
  p.b = Bf16Of(gate_up_E2FH);
  p.out = Bf16Of(dx_NH);
  p.offsets = IntOf(offsets_E1);
  p.max_rows = dz_N2F.size(0);
  p.experts = Dim(gate_up_E2FH, 0);
  p.k = Dim(gate_up_E2FH, 1);
  p.n = Dim(gate_up_E2FH, 2);
  p.num_sms = NumSms();
  CheckKernel(kernels::GroupedLinearGrad(p, CurrentStream()), "experts: up gradient");
  return dx_NH;
}

void ExpertsBackwardWeight(const at::Tensor& dy_NO, const at::Tensor& x_NI,
                           const at::Tensor& offsets_E1, at::Tensor dweight_EOI, bool accumulate) {
  const auto run = [&]<class Out>(Out* out) {
    kernels::GroupedWeightGradParams<Out> p = {};
    p.a = Bf16Of(dy_NO);
    p.b = Bf16Of(x_NI);
    p.out = out;
    p.offsets = IntOf(offsets_E1);
    p.max_rows = dy_NO.size(0);
    p.experts = Dim(dweight_EOI, 0);
    p.m = Dim(dweight_EOI, 1);
    p.n = Dim(dweight_EOI, 2);
    p.accumulate = accumulate;
    p.num_sms = NumSms();
    CheckKernel(kernels::GroupedWeightGrad(p, CurrentStream()), "experts: weight gradient");
  };
  if (dweight_EOI.scalar_type() == at::kFloat) {
    run(FloatOf(dweight_EOI));
  } else {
    run(Bf16Of(dweight_EOI));
  }
}

}  // namespace switchyard::ops::on_cuda
