// Plain loops for cross_entropy.h, on host pointers; the workspace is not used.
#ifndef SWITCHYARD_KERNELS_CROSS_ENTROPY_CROSS_ENTROPY_REF_H_
#define SWITCHYARD_KERNELS_CROSS_ENTROPY_CROSS_ENTROPY_REF_H_

#include "kernels/cross_entropy/cross_entropy.h"

namespace switchyard::kernels {

void CrossEntropyRef(const CrossEntropyParams& p);
void LinearCrossEntropyRef(const LinearCrossEntropyParams<float>& p);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_CROSS_ENTROPY_CROSS_ENTROPY_REF_H_
