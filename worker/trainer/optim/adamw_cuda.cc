// AdamW on CUDA: kernels/adamw for bf16 weights; for float32 weights, which only tests train with,
// ATen's operations in the order of the CPU's loops, each rounded by itself.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/adamw/adamw.h"
#include "worker/trainer/optim/adamw_update.h"

namespace switchyard {
namespace {

using kernels::Bf16;

template <typename T>
T* Data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <typename Grad, typename Moment>
void Launch(const AdamUpdate& u, const UpdateControl& control) {
  kernels::AdamWParams<Grad, Moment> p;
  p.weight = Data<Bf16>(u.weight);
  p.remainder = u.remainder.defined() ? Data<int16_t>(u.remainder) : nullptr;
  p.m = Data<Moment>(u.exp_avg);
  p.v = Data<Moment>(u.exp_avg_sq);
  p.grad = Data<Grad>(u.gradient);
  p.control = Data<kernels::StepControl>(control.device);
  p.size = u.weight.numel();
  p.key = u.key;
  p.first_index = static_cast<uint64_t>(u.first_index);
  p.scalars = u.scalars;
  TORCH_CHECK(p.size % 8 == 0, "adam: a run of ", p.size,
              " elements: on CUDA parameters with and without decay must alternate at multiples of "
              "8 elements");
  const cudaError_t error = kernels::AdamW(p, c10::cuda::getCurrentCUDAStream());
  TORCH_CHECK(error == cudaSuccess, "adam: ", cudaGetErrorString(error));
}

int64_t Signed(uint64_t value) { return static_cast<int64_t>(value); }

at::Tensor ShiftRight(const at::Tensor& x, int64_t bits) {
  return at::bitwise_and(at::bitwise_right_shift(x, bits),
                         at::Scalar(Signed(~uint64_t{0} >> bits)));
}

// kernels::RoundingBits of each element.
at::Tensor RoundingBits(const AdamUpdate& u) {
  const int64_t n = u.weight.numel();
  at::Tensor x =
      at::arange(u.first_index + 1, u.first_index + n + 1, u.weight.options().dtype(at::kLong));
  x.mul_(Signed(0x9e3779b97f4a7c15u)).add_(Signed(u.key));
  x = at::bitwise_xor(x, ShiftRight(x, 30)).mul_(Signed(0xbf58476d1ce4e5b9u));
  x = at::bitwise_xor(x, ShiftRight(x, 27)).mul_(Signed(0x94d049bb133111ebu));
  return at::bitwise_xor(x, ShiftRight(x, 31));
}

void Store(const at::Tensor& moment, const at::Tensor& value, const at::Tensor& random) {
  if (moment.scalar_type() == at::kFloat) {
    moment.copy_(value);
    return;
  }
  const at::Tensor bits = value.view(at::kInt) + at::bitwise_and(random, 0xffff).to(at::kInt);
  moment.view(at::kShort).copy_(at::bitwise_right_shift(bits, 16));
}

void UpdateFp32(const AdamUpdate& u, float gradient_scale) {
  const kernels::AdamWScalars& c = u.scalars;
  at::Tensor g = u.gradient.to(at::kFloat) * gradient_scale;
  if (c.l2 != 0) g.add_(u.weight * c.l2);
  u.weight.mul_(c.weight_keep);
  at::Tensor m = u.exp_avg.to(at::kFloat);
  m = m + (g - m) * c.beta1_weight;
  const at::Tensor v = u.exp_avg_sq.to(at::kFloat) * c.beta2 + g * c.beta2_weight * g;
  // By a tensor: dividing by a number multiplies by its reciprocal on CUDA.
  const at::Tensor correction = at::full({1}, c.sqrt_correction2, g.options());
  const at::Tensor denominator = (v.sqrt() / correction).add_(c.eps);
  u.weight.sub_((m * c.step_size).div_(denominator));
  at::Tensor random;
  if (u.exp_avg.scalar_type() == at::kBFloat16) random = RoundingBits(u);
  Store(u.exp_avg, m, random);
  Store(u.exp_avg_sq, v, random.defined() ? ShiftRight(random, 16) : random);
}

}  // namespace

void UpdateOnCuda(const AdamUpdate& u, const UpdateControl& control) {
  if (u.weight.scalar_type() == at::kFloat) {
    const UpdateControl decided = control.Read();
    if (decided.apply) UpdateFp32(u, static_cast<float>(decided.scale));
    return;
  }
  const bool bf16_gradient = u.gradient.scalar_type() == at::kBFloat16;
  if (u.exp_avg.scalar_type() == at::kFloat) {
    bf16_gradient ? Launch<Bf16, float>(u, control) : Launch<float, float>(u, control);
  } else {
    bf16_gradient ? Launch<Bf16, Bf16>(u, control) : Launch<float, Bf16>(u, control);
  }
}

}  // namespace switchyard
