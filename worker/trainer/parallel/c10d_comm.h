// Collectives between processes, over torch's process groups.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_C10D_COMM_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_C10D_COMM_H_

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "worker/trainer/parallel/comms.h"

namespace switchyard {

struct C10dOptions {
  std::string master_address = "127.0.0.1";
  int master_port = 29500;  // rank 0 listens here while the gang meets
  // Of the meeting and of every collective.
  absl::Duration timeout = absl::Seconds(600);
  // Tells one attempt's gang from another's that meets at the same port by mistake.
  std::string gang = "gang";
  // Tensors on the current GPU travel over NCCL, those on the CPU over Gloo all the same.
  bool cuda = false;
};

// Meets the other ranks and makes one process group per axis and kind of device: Gloo, whose
// traffic goes out on the address this host uses to reach the master (docs/decisions/gloo.md).
// Blocks until all have come. Throws: a timeout naming how many came, or a port that is taken.
Comms MakeC10dComms(const Mesh& mesh, const C10dOptions& options);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_C10D_COMM_H_
