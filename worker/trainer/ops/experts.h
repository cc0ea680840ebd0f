// The gated MLP over rows that are grouped by expert:
//     z = x [gate | up]^T,  h = w * silu(z_gate) * z_up,  y = h down^T
// The routing weight w of a row goes in before the down projection: its gradient is then a dot
// product at the hidden activation, and no expert output is kept. A dense MLP is the case of one
// expert (offsets undefined) without weights.
//
// N rows (of which expert e owns [offsets[e], offsets[e + 1]); rows past the last offset are
// neither read nor written), H hidden, F ffn, E experts, P partial sums. Offsets are int32 on the
// device of the rows, or undefined: one expert owns all. Weights [E, out, in] as in the checkpoint.
// CUDA, bf16: grouped products (kernels/grouped_gemm), H and F multiples of 8, E <= 512, other
// shapes are an error; else composed, with the counts read on the host.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_EXPERTS_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_EXPERTS_H_

#include <ATen/core/Tensor.h>

namespace switchyard::ops {

struct ExpertsUp {
  at::Tensor z_N2F;  // before the activation: what the backward keeps
  at::Tensor h_NF;
};
// weights_N: accumulation dtype, or undefined (1).
ExpertsUp ExpertsUpForward(const at::Tensor& x_NH, const at::Tensor& gate_up_E2FH,
                           const at::Tensor& weights_N, const at::Tensor& offsets_E1);
// -> [N, H].
at::Tensor ExpertsDownForward(const at::Tensor& h_NF, const at::Tensor& down_EHF,
                              const at::Tensor& offsets_E1);

struct ExpertsDownGradients {
  at::Tensor dz_N2F;
  at::Tensor h_NF;         // as in the forward
  at::Tensor dweights_PN;  // its sum over P is the gradient of weights_N; undefined without
};
ExpertsDownGradients ExpertsDownBackward(const at::Tensor& dy_NH, const at::Tensor& z_N2F,
                                         const at::Tensor& down_EHF, const at::Tensor& weights_N,
                                         const at::Tensor& offsets_E1);
// -> dx [N, H].
at::Tensor ExpertsUpBackward(const at::Tensor& dz_N2F, const at::Tensor& gate_up_E2FH,
                             const at::Tensor& offsets_E1);
// dweight_e (+)= dy_e^T x_e, for either projection; zeros where an expert has no rows. dweight:
// float32, bf16, or float64 in tests.
void ExpertsBackwardWeight(const at::Tensor& dy_NO, const at::Tensor& x_NI,
                           const at::Tensor& offsets_E1, at::Tensor dweight_EOI, bool accumulate);

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_EXPERTS_H_
