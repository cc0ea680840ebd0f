// Removes what nobody will read again: the events and steps of jobs that ended long ago, and the
// rows that make repeated calls answer as the first one did. A job itself, its attempts, its
// checkpoints and its last event stay.
#ifndef SWITCHYARD_SERVER_STORE_HISTORY_PRUNER_H_
#define SWITCHYARD_SERVER_STORE_HISTORY_PRUNER_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/thread.h"
#include "server/store/store.h"

namespace switchyard {

struct PruneConfig {
  // Since the end of the job. Infinite: for ever.
  absl::Duration keep_history = absl::Hours(24 * 30);
  // Since the call, once its job has ended. Infinite: for ever.
  absl::Duration keep_requests = absl::Hours(24 * 7);
};

class HistoryPruner {
 public:
  HistoryPruner(Store& store, Clock& clock, const PruneConfig& config)
      : store_(store), clock_(clock), config_(config) {}
  ~HistoryPruner() { Stop(); }

  // A thread that looks every few minutes.
  void Start();
  void Stop() { thread_.StopAndJoin(); }

  // All that is due, in writes of few rows each, so that others get their turn between them. Ends
  // early when `stop` asks.
  absl::Status RunOnce(const StopToken& stop);

 private:
  Store& store_;
  Clock& clock_;
  const PruneConfig config_;
  Thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_HISTORY_PRUNER_H_
