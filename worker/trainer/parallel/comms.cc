#include "worker/trainer/parallel/comms.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace switchyard {

Comms::Comms(const Mesh& mesh, const Factory& factory) {
  std::map<std::vector<int>, std::shared_ptr<Comm>> made;
  for (Axis axis :
       {Axis::kWorld, Axis::kDpReplicate, Axis::kDpShard, Axis::kEp, Axis::kExpertShard}) {
    const std::vector<int> ranks = mesh.Group(axis);
    std::shared_ptr<Comm>& comm = made[ranks];
    if (comm == nullptr) {
      comm = factory(absl::StrCat("ranks ", absl::StrJoin(ranks, ",")), ranks, mesh.AxisRank(axis),
                     /*on_host=*/false);
    }
    by_axis_[axis] = comm;
  }
  const std::vector<int> world = mesh.Group(Axis::kWorld);
  background_ = factory(absl::StrCat("ranks ", absl::StrJoin(world, ","), " in the background"),
                        world, mesh.rank, /*on_host=*/true);
}

}  // namespace switchyard
