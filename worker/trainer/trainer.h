// The training loop of one rank: micro-batches, clip, optimizer step, metrics, validation,
// checkpoints.
//
//   loading   comms, model config, data, weights (or a checkpoint), memory plan
//   training  per step: agree on stopping; for each micro-batch forward and backward; clip; update;
//             step frame; every so often validation and a checkpoint
//   the end   validation, final checkpoint; rank 0 waits for its commit; done frame
//
// Normalisation: gradients are those of (sum of cross entropy over all supervised tokens of the
// global batch) / (their number) + coefficient x (mean auxiliary loss of the non-empty
// micro-batches).
#ifndef SWITCHYARD_WORKER_TRAINER_TRAINER_H_
#define SWITCHYARD_WORKER_TRAINER_TRAINER_H_

#include <cstdint>
#include <functional>

#include "absl/time/time.h"
#include "base/clock.h"
#include "worker/link/messages.h"
#include "worker/trainer/config.h"
#include "worker/trainer/control.h"
#include "worker/trainer/parallel/comms.h"

namespace switchyard {

// What surrounds a trainer.
struct TrainerEnvironment {
  // Meets the gang; called once.
  std::function<Comms(const Mesh& mesh)> make_comms;
  // Takes frames, from the trainer's thread. Which frames come from rank 0 alone is decided here.
  std::function<void(const RankFrame& frame)> report;
  Control* control = nullptr;
  Clock* clock = nullptr;
  // How long rank 0 waits for the commit of its last checkpoint; zero when nobody commits.
  absl::Duration commit_timeout = absl::Seconds(60);
};

struct TrainResult {
  int64_t step = 0;      // steps done
  bool stopped = false;  // ended by request, before the last step
};

// Runs the job of `config` to its end or to a stop request. `config` is valid. One call per
// process; in tests one per rank's thread. Errors: exceptions that DescribeFailure (failure.h)
// names.
TrainResult Train(const TrainConfig& config, const TrainerEnvironment& environment);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_TRAINER_H_
