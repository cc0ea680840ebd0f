// Plain loops for rank_sum.h, on host pointers.
#ifndef SWITCHYARD_KERNELS_RANK_SUM_RANK_SUM_REF_H_
#define SWITCHYARD_KERNELS_RANK_SUM_RANK_SUM_REF_H_

#include "kernels/rank_sum/rank_sum.h"

namespace switchyard::kernels {

void RankSumRef(const RankSumParams<float>& p);
void RankSumRef(const RankSumParams<Bf16>& p);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_RANK_SUM_RANK_SUM_REF_H_
