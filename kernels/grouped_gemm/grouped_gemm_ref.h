// Plain loops for grouped_gemm.h, on host pointers: the specification. fp32 sums.
#ifndef SWITCHYARD_KERNELS_GROUPED_GEMM_GROUPED_GEMM_REF_H_
#define SWITCHYARD_KERNELS_GROUPED_GEMM_GROUPED_GEMM_REF_H_

#include "kernels/grouped_gemm/grouped_gemm.h"

namespace switchyard::kernels {

void GroupedUpProjectionRef(const GroupedUpProjectionParams& p);
void GroupedLinearRef(const GroupedLinearParams& p);
void GroupedLinearGradRef(const GroupedLinearGradParams& p);
void LinearGradSplitRef(const LinearGradSplitParams& p);
// dp_partial gets the columns' sums per tile, as the kernel does.
void GroupedDownGradRef(const GroupedDownGradParams& p);
void GroupedWeightGradRef(const GroupedWeightGradParams<float>& p);
void GroupedWeightGradRef(const GroupedWeightGradParams<Bf16>& p);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_GROUPED_GEMM_GROUPED_GEMM_REF_H_
