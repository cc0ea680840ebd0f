// Gives disk space back, on a thread of its own: retention as attempts and downloads end, files of
// deleted checkpoints, and what attempts that are over have left in their staging folders.
//
// What should happen is in the database; a round that fails or is cut off by a crash is made up for
// by the next one. A file system that is not mounted makes a round fail, and nothing else.
#ifndef SWITCHYARD_SERVER_ARTIFACTS_HOUSEKEEPER_H_
#define SWITCHYARD_SERVER_ARTIFACTS_HOUSEKEEPER_H_

#include <map>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/monitor.h"
#include "base/thread.h"
#include "server/artifacts/checkpoint_holds.h"
#include "server/artifacts/publisher.h"
#include "server/store/store.h"

namespace switchyard {

class Housekeeper {
 public:
  // Listens to the store from now on. `grace`: how long an attempt must be over before its staging
  // folder goes; its last writes and a coordinator that commits late are over by then.
  Housekeeper(Store& store, Publisher& publisher, CheckpointHolds& holds, Clock& clock,
              absl::Duration grace);

  // Once, after recovery. The first round also looks for what was left before the start.
  void Start();
  // Waits for the round in progress. Idempotent.
  void Stop() { thread_.StopAndJoin(); }

  // One round: all that is due. The thread's own, or of a test that has not started it.
  void RunOnce();

 private:
  struct Inbox {
    Monitor mu;
    std::set<JobId> jobs ABSL_GUARDED_BY(mu);          // whose retention should be looked at
    std::set<AttemptId> attempts ABSL_GUARDED_BY(mu);  // that ended
    bool deleting ABSL_GUARDED_BY(mu) = false;
  };
  void Loop(const StopToken& stop);
  void LookForLeftovers();
  // Logs a failure once, until it is another one.
  void Tell(const std::string& what, const absl::Status& status);

  Store& store_;
  Publisher& publisher_;
  CheckpointHolds& holds_;
  Clock& clock_;
  const absl::Duration grace_;
  const std::shared_ptr<Inbox> inbox_ =
      std::make_shared<Inbox>();  // the store's listener has it too
  // The rest is RunOnce's.
  bool looked_ = false;
  std::set<JobId> jobs_;                        // their retention failed before
  std::map<AttemptId, absl::Duration> staged_;  // when they may go, monotonic
  std::map<std::string, std::string> told_;
  Thread thread_;  // last
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_ARTIFACTS_HOUSEKEEPER_H_
