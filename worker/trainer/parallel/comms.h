// The groups of one rank, one per mesh axis.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_COMMS_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_COMMS_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "worker/trainer/parallel/comm.h"
#include "worker/trainer/parallel/mesh.h"

namespace switchyard {

// Axes whose groups hold the same ranks share one Comm: all calls come from one thread in one
// order.
class Comms {
 public:
  // `ranks`: of one group, ascending; `rank` is this one's index in it. The name is unique to the
  // group over the whole world: "ranks 0,1".
  using Factory = std::function<std::shared_ptr<Comm>(const std::string& name,
                                                      const std::vector<int>& ranks, int rank)>;
  // Calls `factory` once per distinct group, in the same order on all ranks.
  Comms(const Mesh& mesh, const Factory& factory);

  Comm& operator[](Axis axis) const { return *by_axis_.at(axis); }

 private:
  std::map<Axis, std::shared_ptr<Comm>> by_axis_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_COMMS_H_
