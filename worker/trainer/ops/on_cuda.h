// What our kernels serve: bf16 on CUDA. Private to this folder: foo.cc decides with the predicates
// and calls here; foo_cuda.cc defines. Builds without SY_CUDA have none of it, nor tensors that
// would need it. Arguments and results are those of the public function of the same name.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_ON_CUDA_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_ON_CUDA_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/trainer/ops/cross_entropy.h"
#include "worker/trainer/ops/experts.h"
#include "worker/trainer/ops/permute.h"
#include "worker/trainer/ops/rms_norm.h"
#include "worker/trainer/ops/rope.h"
#include "worker/trainer/ops/router.h"

namespace switchyard::ops::on_cuda {

bool ServesRmsNorm(const at::Tensor& x_RD);
RmsNormOutput RmsNormForward(const at::Tensor& x_RD, const at::Tensor& weight_D, double eps);
RmsNormOutput AddRmsNormForward(at::Tensor x_RD, const at::Tensor& residual_RD,
                                const at::Tensor& weight_D, double eps);
at::Tensor RmsNormBackward(const at::Tensor& dy_RD, const at::Tensor& x_RD,
                           const at::Tensor& inverse_rms_R, const at::Tensor& weight_D, double eps,
                           const at::Tensor& dresidual_RD, at::Tensor dweight_D, bool accumulate);

// The composed operations take cosines and sines per token, the kernel takes the table.
bool ServesRope(const at::Tensor& positions_T, at::ScalarType type, int64_t head_dim);
QueriesAndKeys QkNormRopeForward(const QueriesAndKeys& raw, const QkNorm& norm,
                                 const RopeAngles& angles);
void QkNormRopeBackward(const QueriesAndKeys& d, const QueriesAndKeys& raw, const QkNorm& norm,
                        const RopeAngles& angles, const QueriesAndKeys& draw, QkNorm dnorm,
                        bool accumulate);

bool ServesRouter(const at::Tensor& logits_TE, const RouterOptions& options);
bool ServesRouterBackward(const RouterChoice& choice);
RouterChoice RouterForward(const at::Tensor& logits_TE, const RouterOptions& options);
at::Tensor RouterBackward(const RouterChoice& choice, const at::Tensor& dweights_TK, bool normalize,
                          const at::Tensor& daux_E);

bool ServesPermute(const at::Tensor& x_TH, const RowMap& map);
PermutedRows PermuteRows(const at::Tensor& x_TH, const at::Tensor& scalars_TK, const RowMap& map);
at::Tensor UnpermuteSum(const at::Tensor& rows_NH, const at::Tensor& residual_TH, const RowMap& map,
                        const at::Tensor& scalars_PN, at::Tensor* scalars_TK);

// Errors: sizes that the kernels do not take; nothing else computes them without the host.
bool ServesExperts(const at::Tensor& x_NI, int64_t experts, int64_t hidden, int64_t ffn);
ExpertsUp ExpertsUpForward(const at::Tensor& x_NH, const at::Tensor& gate_up_E2FH,
                           const at::Tensor& weights_N, const at::Tensor& offsets_E1);
at::Tensor ExpertsDownForward(const at::Tensor& h_NF, const at::Tensor& down_EHF,
                              const at::Tensor& offsets_E1);
ExpertsDownGradients ExpertsDownBackward(const at::Tensor& dy_NH, const at::Tensor& z_N2F,
                                         const at::Tensor& down_EHF, const at::Tensor& weights_N,
                                         const at::Tensor& offsets_E1);
at::Tensor ExpertsUpBackward(const at::Tensor& dz_N2F, const at::Tensor& gate_up_E2FH,
                             const at::Tensor& offsets_E1);
void ExpertsBackwardWeight(const at::Tensor& dy_NO, const at::Tensor& x_NI,
                           const at::Tensor& offsets_E1, at::Tensor dweight_EOI, bool accumulate);

bool ServesRankSum(const at::Tensor& parts_RN);
void RankSum(const at::Tensor& parts_RN, at::Tensor out_N);

bool ServesEmbedding(const at::Tensor& rows_RH);
at::Tensor EmbeddingForward(const at::Tensor& tokens_T, const at::Tensor& weight_VH);
// Adds.
void EmbeddingBackward(const at::Tensor& dx_TH, const at::Tensor& tokens_T, int64_t padding_row,
                       at::Tensor dweight_VH);

bool ServesCrossEntropy(const at::Tensor& hidden_TH, const at::Tensor& weight_VH);
at::Tensor LinearCrossEntropy(const at::Tensor& hidden_TH, const at::Tensor& weight_VH,
                              const Targets& targets, int64_t chunk_tokens,
                              const CrossEntropyGradients* gradients);

}  // namespace switchyard::ops::on_cuda

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_ON_CUDA_H_
