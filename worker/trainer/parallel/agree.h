// Flags on which all ranks must agree before any of them acts: a rank never leaves a collective
// alone.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_AGREE_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_AGREE_H_

#include "worker/trainer/parallel/comm.h"

namespace switchyard {

// What one rank has been asked to do, and after AgreeOnStop what all will do.
struct StopRequest {
  bool stop = false;
  bool checkpoint = false;  // write one before leaving; counts only on ranks that stop
};

// Collective. Stops when any rank was asked to; writes a checkpoint unless a rank that was asked to
// stop was asked to do so without (its link has closed, nobody would commit it).
StopRequest AgreeOnStop(Comm& world, const StopRequest& mine);

// Collective. Whether `mine` is true on every rank.
bool AgreeOnAll(Comm& group, bool mine);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_AGREE_H_
