#include "kernels/rank_sum/rank_sum_ref.h"

namespace switchyard::kernels {
namespace {

template <class T>
void Sum(const RankSumParams<T>& p) {
  for (int64_t i = 0; i < p.size; ++i) {
    float sum = ToFloat(p.parts[i]);
    for (int rank = 1; rank < p.ranks; ++rank) sum += ToFloat(p.parts[rank * p.size + i]);
    p.out[i] = FromFloat<T>(sum);
  }
}

}  // namespace

void RankSumRef(const RankSumParams<float>& p) { Sum(p); }
void RankSumRef(const RankSumParams<Bf16>& p) { Sum(p); }

}  // namespace switchyard::kernels
