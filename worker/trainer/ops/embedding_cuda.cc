#include <ATen/ATen.h>

#include "kernels/embedding/embedding.h"
#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/embedding.h"
#include "worker/trainer/ops/kernel_call.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops::on_cuda {

bool ServesEmbedding(const at::Tensor& rows_RH) {
  return HasKernels(rows_RH) && rows_RH.is_contiguous() && rows_RH.size(1) % 8 == 0;
}

at::Tensor EmbeddingForward(const at::Tensor& tokens_T, const at::Tensor& weight_VH) {
  at::Tensor out_TH = at::empty({tokens_T.size(0), weight_VH.size(1)}, weight_VH.options());
  if (tokens_T.size(0) == 0) return out_TH;
  kernels::EmbeddingParams p = {};
  p.table = Bf16Of(weight_VH);
  p.ids = IntOf(tokens_T);
  p.out = Bf16Of(out_TH);
  p.tokens = tokens_T.size(0);
  p.hidden = static_cast<int>(weight_VH.size(1));
  CheckKernel(kernels::Embedding(p, CurrentStream()), "embedding");
  return out_TH;
}

void EmbeddingBackward(const at::Tensor& dx_TH, const at::Tensor& tokens_T, int64_t padding_row,
                       at::Tensor dweight_VH) {
  const int64_t tokens = tokens_T.size(0);
  if (tokens == 0) return;
  const int64_t bytes = kernels::EmbeddingGradWorkspaceBytes(tokens);
  at::Tensor workspace = at::empty({bytes}, dx_TH.options().dtype(at::kByte));
  const auto run = [&]<class Out>(Out* out) {
    kernels::EmbeddingGradParams<Out> p = {};
    p.d_out = Bf16Of(dx_TH);
    p.ids = IntOf(tokens_T);
    p.d_table = out;
    p.workspace = workspace.data_ptr();
    p.workspace_bytes = bytes;
    p.tokens = tokens;
    p.hidden = static_cast<int>(dx_TH.size(1));
    p.vocabulary = static_cast<int>(dweight_VH.size(0));
    p.padding_id = static_cast<int>(padding_row);
    CheckKernel(kernels::EmbeddingGrad(p, CurrentStream()), "embedding backward");
  };
  if (dweight_VH.scalar_type() == at::kFloat) {
    run(FloatOf(dweight_VH));
  } else {
    run(Bf16Of(dweight_VH));
  }
}

}  // namespace switchyard::ops::on_cuda
