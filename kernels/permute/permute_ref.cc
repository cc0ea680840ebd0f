#include "kernels/permute/permute_ref.h"

namespace switchyard::kernels {

void PermuteRef(const PermuteParams& p) {
  for (int64_t n = 0; n < p.tokens * p.top_k; ++n) {
    const int64_t row = p.row_of[n];
    if (row < 0) continue;
    for (int i = 0; i < p.hidden; ++i) p.out[row * p.hidden + i] = p.x[n / p.top_k * p.hidden + i];
    if (p.weight != nullptr) p.row_weight[row] = p.weight[n];
  }
}

void CombineRef(const CombineParams& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int i = 0; i < p.hidden; ++i) {
      float sum = 0.f;
      for (int k = 0; k < p.top_k; ++k) {
        const int64_t row = p.row_of[t * p.top_k + k];
        if (row >= 0) sum += ToFloat(p.rows[row * p.hidden + i]);
      }
      if (p.residual != nullptr) sum += ToFloat(p.residual[t * p.hidden + i]);
      p.out[t * p.hidden + i] = ToBf16(sum);
    }
    if (p.dp_partial == nullptr) continue;
    for (int k = 0; k < p.top_k; ++k) {
      const int64_t n = t * p.top_k + k;
      float sum = 0.f;
      for (int i = 0; i < p.num_partials && p.row_of[n] >= 0; ++i) {
        sum += p.dp_partial[i * p.max_rows + p.row_of[n]];
      }
      p.d_weight[n] = sum;
    }
  }
}

}  // namespace switchyard::kernels
