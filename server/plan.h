// What the scheduler wants done, with the versions it rests on. Store::Apply skips what has changed
// since.
#ifndef SWITCHYARD_SERVER_PLAN_H_
#define SWITCHYARD_SERVER_PLAN_H_

#include <string>
#include <vector>

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

struct PendingNote {
  JobId job;
  int64_t version = 0;
  PendingReason reason = PendingReason::kNone;
  std::string message;
};

struct Plan {
  std::vector<GangPlacement> placements;
  std::vector<PendingNote> pending;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_PLAN_H_
