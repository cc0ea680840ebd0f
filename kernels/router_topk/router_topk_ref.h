// Plain loops for router_topk.h, on host pointers. The workspace is not used.
#ifndef SWITCHYARD_KERNELS_ROUTER_TOPK_ROUTER_TOPK_REF_H_
#define SWITCHYARD_KERNELS_ROUTER_TOPK_ROUTER_TOPK_REF_H_

#include "kernels/router_topk/router_topk.h"

namespace switchyard::kernels {

void RouterTopKRef(const RouterTopKParams& p);
void RouterTopKGradRef(const RouterTopKGradParams& p);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_ROUTER_TOPK_ROUTER_TOPK_REF_H_
