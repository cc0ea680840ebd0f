// Plain loops for permute.h, on host pointers.
#ifndef SWITCHYARD_KERNELS_PERMUTE_PERMUTE_REF_H_
#define SWITCHYARD_KERNELS_PERMUTE_PERMUTE_REF_H_

#include "kernels/permute/permute.h"

namespace switchyard::kernels {

void PermuteRef(const PermuteParams& p);
void CombineRef(const CombineParams& p);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_PERMUTE_PERMUTE_REF_H_
