#include "kernels/adamw/adamw_ref.h"

namespace switchyard::kernels {

void FinishGradNormRef(const FinishGradNormParams& p) {
  double sum = 0;
  for (int64_t i = 0; i < p.num_partials; ++i) sum += p.partial[i];
  const auto norm = static_cast<float>(std::sqrt(sum) / p.divisor);
  const float clip = p.max_norm > 0 && norm > p.max_norm ? p.max_norm / (norm + 1e-6f) : 1.f;
  *p.control = {norm, clip / p.divisor, std::isfinite(norm) ? 1 : 0};
}

}  // namespace switchyard::kernels
