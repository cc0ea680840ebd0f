// The cluster as the scheduler sees it, at one instant.
#ifndef SWITCHYARD_SERVER_SNAPSHOT_H_
#define SWITCHYARD_SERVER_SNAPSHOT_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/ids.h"
#include "server/plan.h"
#include "server/records.h"

namespace switchyard {

// What the scheduler reads of a job's row.
struct JobView {
  JobId id;
  int64_t seq = 0;
  int64_t version = 0;
  JobState state = JobState::kQueued;
  PendingReason pending = PendingReason::kNone;
  int32_t attempt = 0;
  int32_t num_ranks = 0;
  bool cpu_only = false;
  int32_t priority = 0;
  bool resumable = false;
  absl::Duration backoff;
  absl::Duration max_run_time;  // zero: no limit
  absl::Duration run_time;
  int64_t checkpoint_every = 0;
  absl::Duration stop_grace;
  std::vector<NodeId> avoided;
  std::vector<GangMember> parts;  // not yet finished or lost
};

struct DeviceView {
  int32_t index = 0;
  std::string kind;  // gangs are of one kind
  bool busy = false;
};

struct NodeView {
  NodeId id;
  // Heard from lately. An unreachable node keeps what it runs but gets nothing new.
  bool reachable = false;
  std::vector<DeviceView> devices;
  // Cordoned or draining: as unreachable, but somebody wants it so.
  bool cordoned = false;
  bool draining = false;
  // Held by the coordinator itself (scheduler/quarantine.h): as cordoned.
  bool quarantined = false;
  int32_t quarantine_level = 0;

  // May get new work.
  bool usable() const { return reachable && !cordoned && !quarantined; }
};

struct WaitingJob {
  JobId id;
  int64_t version = 0;  // the plan rests on it
  int32_t num_ranks = 0;
  bool cpu_only = false;
  absl::Duration not_before;  // monotonic; end of the retry backoff
  int32_t priority = 0;
  int64_t seq = 0;  // order of creation
  std::vector<NodeId> avoided;
  PendingReason pending = PendingReason::kNone;  // what it was told last
};

// A gang that holds devices.
struct GangOnNodes {
  JobId job;
  int64_t version = 0;
  int32_t priority = 0;
  bool stopping = false;
  bool resumable = false;
  absl::Duration since;  // monotonic; when it was first seen with this attempt
  std::vector<GangMember> members;
};

struct ClusterSnapshot {
  std::vector<NodeView> nodes;      // not lost, by id
  std::vector<WaitingJob> waiting;  // higher priority first, then older first
  std::vector<GangOnNodes> gangs;   // in no order
  std::vector<Hold> holds;          // of the decision before
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SNAPSHOT_H_
