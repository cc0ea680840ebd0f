// The cluster as the scheduler sees it, at one instant. Immutable once built.
#ifndef SWITCHYARD_SERVER_SNAPSHOT_H_
#define SWITCHYARD_SERVER_SNAPSHOT_H_

#include <vector>

#include "absl/time/time.h"
#include "base/ids.h"
#include "server/records.h"

namespace switchyard {

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
};

struct WaitingJob {
  JobId id;
  int64_t version = 0;  // the plan rests on it
  int32_t num_ranks = 0;
  bool cpu_only = false;
  absl::Duration not_before;  // monotonic; end of the retry backoff
};

struct ClusterSnapshot {
  std::vector<NodeView> nodes;      // leased ones, by id
  std::vector<WaitingJob> waiting;  // oldest first
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SNAPSHOT_H_
