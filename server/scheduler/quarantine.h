// Holds nodes from placement that come and go: each time one takes a gang and drops it, the gang's
// whole cluster share has waited for nothing.
//
// Trouble is counted by node: a session that begins anew 1, another life of its agent, an expired
// lease or failed hardware 2 each. `limit` within `window` quarantines the node; it is released
// when it had no trouble for the period of its level: `first`, doubled with each level up to
// `longest`. A node that was calm for `calm` after its release begins at the first level again.
// What runs on a node goes on: a quarantine keeps new work out and stops nothing.
#ifndef SWITCHYARD_SERVER_SCHEDULER_QUARANTINE_H_
#define SWITCHYARD_SERVER_SCHEDULER_QUARANTINE_H_

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/records.h"
#include "server/snapshot.h"
#include "server/store/store.h"

namespace switchyard {

struct QuarantineConfig {
  int limit = 6;
  absl::Duration window = absl::Minutes(10);
  absl::Duration first = absl::Minutes(1);
  absl::Duration longest = absl::Hours(1);
  absl::Duration calm = absl::Hours(2);
};

struct QuarantineChange {
  NodeId node;
  QuarantineRecord quarantine;
};

// How long a node of this level (from 1) must be calm. Pure.
absl::Duration QuarantinePeriod(const QuarantineConfig& config, int32_t level);

// Times are monotonic, and counted from when this process first heard of something: a coordinator
// that restarts forgets the trouble before, keeps the quarantines, and counts their periods anew.
// Update on one thread; listens to commits on the store's.
class QuarantineTracker {
 public:
  QuarantineTracker(Store& store, const QuarantineConfig& config);

  // Takes in what commits said so far. Before the picture for Update is refreshed, so that this
  // picture shows at least as much; and the picture listens to commits before this.
  void Collect();

  // What is to be stored. Answers the same again until `nodes` shows it, so that a change that
  // could not be stored is not lost. `nodes` is sorted by id; lost nodes are not in it, and nothing
  // can be placed on them.
  std::vector<QuarantineChange> Update(absl::Duration now, const std::vector<NodeView>& nodes);

 private:
  struct Inbox {  // shared, because the store may outlive the tracker
    absl::Mutex mu;
    std::vector<NodeSignal> signals ABSL_GUARDED_BY(mu);
  };
  struct Track {
    bool registered = false;  // in the life of this process
    bool seen = false;        // what the picture said of it was taken over
    std::vector<std::pair<absl::Duration, int>> trouble;  // when, and how much; oldest first
    absl::Duration last = -absl::InfiniteDuration();      // trouble
    // The quarantine as it should be; `held` tells whether it is one.
    bool held = false;
    int32_t level = 0;
    std::string message;
    absl::Duration released = -absl::InfiniteDuration();
  };
  void Take(absl::Duration now, const NodeSignal& signal);
  void Judge(absl::Duration now, Track& track, const NodeView& view);

  const QuarantineConfig config_;
  const std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();
  std::vector<NodeSignal> signals_;  // collected
  bool started_ = false;
  std::map<NodeId, Track> tracks_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SCHEDULER_QUARANTINE_H_
