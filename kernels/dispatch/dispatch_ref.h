// Plain loops for dispatch.h, on host pointers: all ranks of a group at once. Vectors are indexed
// by rank.
#ifndef SWITCHYARD_KERNELS_DISPATCH_DISPATCH_REF_H_
#define SWITCHYARD_KERNELS_DISPATCH_DISPATCH_REF_H_

#include <vector>

#include "kernels/dispatch/dispatch.h"

namespace switchyard::kernels {

// As DispatchRouteParams.
struct RankRouting {
  int64_t tokens;
  const int32_t* row_of;
  const int32_t* offsets;
};

struct DispatchPlanRef {
  DispatchShape shape;
  int64_t max_rows;
  std::vector<std::vector<int32_t>> offsets;   // [ranks][El + 1]
  std::vector<std::vector<int32_t>> owner_of;  // [ranks][T * top_k] rank of each copy
  std::vector<std::vector<int32_t>> row_at;    // [ranks][T * top_k] its row there
  std::vector<std::vector<int32_t>> records;   // [ranks (source)][ranks (owner)], own: 0
  int32_t needed_rows;
};
DispatchPlanRef PlanDispatchRef(const DispatchShape& shape, const std::vector<RankRouting>& ranks,
                                int64_t max_rows);

// rows[d] and, unless `weights` is empty, row_weights[d] of every rank. Rows without a copy keep
// what they hold.
void DispatchRowsRef(const DispatchPlanRef& plan, const std::vector<const Bf16*>& x,
                     const std::vector<const float*>& weights, const std::vector<Bf16*>& rows,
                     const std::vector<float*>& row_weights);

// out[r] of every rank. `residual` may be empty.
void CombineRowsRef(const DispatchPlanRef& plan, const std::vector<const Bf16*>& rows,
                    const std::vector<const Bf16*>& residual, const std::vector<Bf16*>& out);

// copy_sums[r] of every rank.
void CombinePartialsRef(const DispatchPlanRef& plan, const std::vector<const float*>& row_partials,
                        int num_partials, const std::vector<float*>& copy_sums);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_DISPATCH_DISPATCH_REF_H_
