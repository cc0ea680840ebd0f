#include "worker/trainer/optim/grad_clip.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/adamw/adamw.h"
#include "worker/trainer/optim/grad_norm_cuda.h"

namespace switchyard {
namespace {

constexpr int64_t kBlock = 1 << 14;

template <typename T>
double SumOfSquares(const at::Tensor& flat) {
  const T* data = flat.const_data_ptr<T>();
  const int64_t numel = flat.numel();
  std::vector<double> blocks((numel + kBlock - 1) / kBlock, 0.0);
  at::parallel_for(0, static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      double sum = 0;
      for (int64_t i = b * kBlock; i < std::min(numel, (b + 1) * kBlock); ++i) {
        const double value = static_cast<double>(static_cast<float>(data[i]));
        sum += value * value;
      }
      blocks[b] = sum;
    }
  });
  double sum = 0;
  for (double block : blocks) sum += block;
  return sum;
}

double SumOfSquares(const at::Tensor& flat) {
  return flat.scalar_type() == at::kFloat ? SumOfSquares<float>(flat)
                                          : SumOfSquares<at::BFloat16>(flat);
}

}  // namespace

UpdateControl UpdateControl::Read() const {
  return device.defined() ? Decode(device.cpu()) : *this;
}

UpdateControl UpdateControl::Decode(const at::Tensor& host) {
  const auto* control = static_cast<const kernels::StepControl*>(host.const_data_ptr());
  return {control->norm, control->scale, control->apply != 0, {}};
}

UpdateControl ControlUpdate(const ShardedParameterStore& store, const Comms& comms,
                            const at::Tensor& loss, double max_norm) {
  if (loss.is_cuda()) return ControlUpdateOnCuda(store, comms, loss, max_norm);
  double sum = 0;
  for (int b = 0; b < store.num_buckets(); ++b) sum += SumOfSquares(store.gradient_shard(b));
  at::Tensor total = at::full({1}, sum, at::kDouble);
  comms[Axis::kDpShard].AllReduceSum(total);
  UpdateControl control;
  control.norm = std::sqrt(total.item<double>());
  control.scale = ClipCoefficient(control.norm, max_norm);
  control.apply = std::isfinite(control.norm) && std::isfinite(loss.item<double>());
  return control;
}

double ClipCoefficient(double norm, double max_norm) {
  if (max_norm <= 0) return 1.0;
  return std::min(1.0, max_norm / (norm + 1e-6));
}

#if !defined(SY_CUDA)
UpdateControl ControlUpdateOnCuda(const ShardedParameterStore&, const Comms&, const at::Tensor&,
                                  double) {
  TORCH_CHECK(false, "gradient norm: this build has no CUDA");
}
#endif

}  // namespace switchyard
