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
  // group over the whole world: "ranks 0,1". `on_host`: only tensors on the CPU will travel.
  using Factory = std::function<std::shared_ptr<Comm>(
      const std::string& name, const std::vector<int>& ranks, int rank, bool on_host)>;
  // Calls `factory` once per distinct group and for the background one, in the same order on all
  // ranks.
  Comms(const Mesh& mesh, const Factory& factory);

  Comm& operator[](Axis axis) const { return *by_axis_.at(axis); }
  // The world once more, for the thread that writes checkpoints while the others' groups are busy.
  // For tensors on the CPU.
  Comm& background() const { return *background_; }

 private:
  std::map<Axis, std::shared_ptr<Comm>> by_axis_;
  std::shared_ptr<Comm> background_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_COMMS_H_
