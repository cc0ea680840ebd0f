// What the scheduler wants done, with the versions it rests on. Store::Apply skips what has changed
// since.
#ifndef SWITCHYARD_SERVER_PLAN_H_
#define SWITCHYARD_SERVER_PLAN_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/ids.h"
#include "server/job_state.h"

namespace switchyard {

struct GangMember {
  NodeId node;
  std::vector<int32_t> devices;  // one per rank, in rank order
  friend bool operator==(const GangMember&, const GangMember&) = default;
};

struct GangPlacement {
  JobId job;
  int64_t version = 0;
  std::vector<GangMember> members;  // by node rank; global ranks count through them
  std::string resume_from;          // filled in by the loop
};

// A whole gang that makes room for a job of higher priority.
struct Preemption {
  JobId job;
  int64_t version = 0;
  JobId for_job;
  friend bool operator==(const Preemption&, const Preemption&) = default;
};

// Nodes kept for a job that waits, so that smaller ones behind it cannot take what becomes free
// there. Not stored: a new coordinator chooses anew.
struct Hold {
  JobId job;
  std::string kind;
  std::vector<NodeId> nodes;  // sorted
  friend bool operator==(const Hold&, const Hold&) = default;
};

struct PendingNote {
  JobId job;
  int64_t version = 0;
  PendingReason reason = PendingReason::kNone;
  std::string message;
};

struct Plan {
  std::vector<GangPlacement> placements;
  std::vector<PendingNote> pending;
  std::vector<Preemption> preemptions = {};
  std::vector<Hold> holds = {};                         // for the next decision
  bool more_pending = false;                            // notes were left out; decide again soon
  absl::Duration preemption_grace = absl::Seconds(60);  // filled in by the loop
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_PLAN_H_
