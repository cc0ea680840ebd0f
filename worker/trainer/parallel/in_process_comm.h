// Ranks as threads of one process: collectives are copies between their buffers. On GPUs each rank
// has a device (several may share one) and a current stream of its own; copies are queued there,
// and the host waits for the other ranks' threads only, never for a device. A test seam, never a
// product mode.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_IN_PROCESS_COMM_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_IN_PROCESS_COMM_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "worker/trainer/parallel/comms.h"

namespace switchyard {

class InProcessGroup;

// Outlives the Comms made from it. Thread-safe.
class InProcessWorld {
 public:
  explicit InProcessWorld(absl::Duration timeout) : timeout_(timeout) {}
  ~InProcessWorld();

  // Called by each rank's thread for itself.
  Comms MakeComms(const Mesh& mesh);
  // Ends all waiting and later collectives with an error: a rank has died.
  void Abort(const std::string& why);

 private:
  absl::Duration timeout_;
  absl::Mutex mu_;
  std::map<std::string, std::shared_ptr<InProcessGroup>> groups_ ABSL_GUARDED_BY(mu_);
  std::string aborted_ ABSL_GUARDED_BY(mu_);
};

// Runs body(rank, world) on `world_size` threads and joins them. When one throws the others are
// aborted and the first exception is thrown again.
void RunInProcess(int world_size, absl::Duration timeout,
                  const std::function<void(int rank, InProcessWorld& world)>& body);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_IN_PROCESS_COMM_H_
