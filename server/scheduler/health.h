// What is suspected of live jobs (service.md 2.1): conditions, judged from what agents report and
// from silence. A suspicion never moves a job.
#ifndef SWITCHYARD_SERVER_SCHEDULER_HEALTH_H_
#define SWITCHYARD_SERVER_SCHEDULER_HEALTH_H_

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "server/records.h"
#include "server/snapshot.h"
#include "server/store/store.h"

namespace switchyard {

struct HealthConfig {
  // No step for this long and for five times the longest usual one: STALLED. The agent of rank 0
  // kills a hanging gang by its own watchdog; this only tells.
  absl::Duration stall_floor = absl::Seconds(60);
  // A stop that takes this much longer than its grace period is STALLED too.
  absl::Duration stop_slack = absl::Seconds(60);
  // A rank that is busy for this much longer than the median, for so many steps in a row, is
  // STRAGGLING; over when the ratio was below `straggler_end` for as many.
  double straggler_ratio = 1.5;
  double straggler_end = 1.3;
  int straggler_steps = 10;
};

// What is known of one live attempt. Times are monotonic.
struct GangHealth {
  bool stopping = false;
  absl::Duration since;  // stopping: since when
  absl::Duration stop_grace;
  std::vector<std::string> unreachable;  // nodes
  std::vector<std::string> draining;
  int64_t step = 0;  // the newest; 0: none yet
  absl::Duration last_step;
  double usual_step_seconds = 0;  // the 99th percentile of the recent ones
  int64_t checkpoint_every = 0;
  int64_t checkpoint_step = 0;  // where the count of steps without a checkpoint began
  int32_t straggler = -1;
  double straggler_ratio = 0;
};

// The message of a condition that holds now. Pure.
absl::optional<std::string> Assess(ConditionType type, const GangHealth& gang,
                                   const HealthConfig& config, absl::Duration now);

// Keeps what Assess needs. Update on one thread; listens to commits on the store's.
class HealthTracker {
 public:
  HealthTracker(Store& store, const HealthConfig& config);

  // Changes since the last call, of jobs that are live now. `nodes` is sorted by id.
  std::vector<ConditionChange> Update(absl::Duration now, const std::map<JobId, JobView>& live,
                                      const std::vector<NodeView>& nodes);

  // What Update answered last could not be stored: it is answered again.
  void Retell();

 private:
  struct Inbox {  // shared, because the store may outlive the tracker
    absl::Mutex mu;
    std::vector<StepChange> steps ABSL_GUARDED_BY(mu);
    std::vector<std::pair<JobId, int64_t>> checkpoints ABSL_GUARDED_BY(mu);
  };
  struct Track {
    int32_t attempt = 0;
    GangHealth health;
    std::deque<double> seconds;  // of the last steps
    int32_t slow_rank = -1;
    int slow_steps = 0;
    int even_steps = 0;
    bool told = false;  // the conditions below are what is stored
    std::map<ConditionType, std::string> set;
  };
  void TakeSteps(absl::Duration now);
  void TakeStep(absl::Duration now, const StepChange& step);

  const HealthConfig config_;
  const std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();
  std::map<JobId, Track> tracks_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SCHEDULER_HEALTH_H_
