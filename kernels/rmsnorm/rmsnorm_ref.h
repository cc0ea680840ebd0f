// Plain loops for rmsnorm.h, on host pointers.
#ifndef SWITCHYARD_KERNELS_RMSNORM_RMSNORM_REF_H_
#define SWITCHYARD_KERNELS_RMSNORM_RMSNORM_REF_H_

#include "kernels/rmsnorm/rmsnorm.h"

namespace switchyard::kernels {

void RmsNormRef(const RmsNormParams& p);
void RmsNormGradRef(const RmsNormGradParams& p);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_RMSNORM_RMSNORM_REF_H_
