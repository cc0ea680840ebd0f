#include "worker/trainer/optim/grad_norm_cuda.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/adamw/adamw.h"

namespace switchyard {
namespace {

void Check(cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, "gradient norm: ", cudaGetErrorString(error));
}

template <typename Grad>
void SumSquares(const at::Tensor& gradient, const at::Tensor& partial) {
  const kernels::GradNormParams<Grad> p{static_cast<const Grad*>(gradient.const_data_ptr()),
                                        partial.mutable_data_ptr<float>(), gradient.numel()};
  Check(kernels::GradNorm(p, c10::cuda::getCurrentCUDAStream()));
}

}  // namespace

UpdateControl ControlUpdateOnCuda(const ShardedParameterStore& store, const Comms& comms,
                                  const at::Tensor& loss, double max_norm) {
  const int64_t buckets = store.num_buckets();
  at::Tensor partials =
      at::empty({buckets * kernels::kNormPartials + 1}, loss.options().dtype(at::kFloat));
  for (int b = 0; b < store.num_buckets(); ++b) {
    const at::Tensor gradient = store.gradient_slice(b);
    const at::Tensor partial =
        partials.narrow(0, b * int64_t{kernels::kNormPartials}, kernels::kNormPartials);
    if (gradient.scalar_type() == at::kFloat) {
      SumSquares<float>(gradient, partial);
    } else {
      SumSquares<kernels::Bf16>(gradient, partial);
    }
  }
  Comm& replica = comms[Axis::kDpShard];
  if (replica.size() > 1) {
    at::Tensor sum = partials.narrow(0, 0, buckets * kernels::kNormPartials).sum(at::kDouble);
    sum = sum.view({1});
    replica.AllReduceSum(sum);
    partials = at::empty({2}, partials.options());
    partials.narrow(0, 0, 1).copy_(sum);
  }
  // Zero times the loss: nothing, or NaN, which makes the norm NaN and thereby skips the update.
  partials.narrow(0, partials.numel() - 1, 1).copy_(loss * 0.0);
  UpdateControl control;
  control.device = at::empty({3}, loss.options().dtype(at::kInt));
  static_assert(sizeof(kernels::StepControl) == 3 * sizeof(int32_t));
  const kernels::FinishGradNormParams p{
      partials.const_data_ptr<float>(),
      static_cast<kernels::StepControl*>(control.device.data_ptr()), partials.numel(), 1.0f,
      static_cast<float>(max_norm)};
  Check(kernels::FinishGradNorm(p, c10::cuda::getCurrentCUDAStream()));
  return control;
}

}  // namespace switchyard
