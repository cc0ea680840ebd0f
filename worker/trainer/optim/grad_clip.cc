#include "worker/trainer/optim/grad_clip.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace switchyard {
namespace {

constexpr int64_t kBlock = 1 << 14;

double SumOfSquares(const at::Tensor& flat) {
  const float* data = flat.const_data_ptr<float>();
  const int64_t numel = flat.numel();
  std::vector<double> blocks((numel + kBlock - 1) / kBlock, 0.0);
  at::parallel_for(0, static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      double sum = 0;
      for (int64_t i = b * kBlock; i < std::min(numel, (b + 1) * kBlock); ++i) {
        sum += static_cast<double>(data[i]) * data[i];
      }
      blocks[b] = sum;
    }
  });
  double sum = 0;
  for (double block : blocks) sum += block;
  return sum;
}

}  // namespace

double GlobalGradNorm(const ShardedParameterStore& store, const Comms& comms) {
  double sum = 0;
  for (int b = 0; b < store.num_buckets(); ++b) sum += SumOfSquares(store.gradient_shard(b));
  at::Tensor total = at::full({1}, sum, at::kDouble);
  comms[Axis::kDpShard].AllReduceSum(total);
  return std::sqrt(total.item<double>());
}

double ClipCoefficient(double norm, double max_norm) {
  if (max_norm <= 0) return 1.0;
  return std::min(1.0, max_norm / (norm + 1e-6));
}

}  // namespace switchyard
