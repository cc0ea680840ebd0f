// Plain loops for rope.h, on host pointers; the workspace is not used.
#ifndef SWITCHYARD_KERNELS_ROPE_ROPE_REF_H_
#define SWITCHYARD_KERNELS_ROPE_ROPE_REF_H_

#include "kernels/rope/rope.h"

namespace switchyard::kernels {

void RopeRef(const RopeParams& p);
void RopeGradRef(const RopeGradParams& p);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_ROPE_ROPE_REF_H_
