// Which waiting gang goes where. Pure.
//
// First in, first out, whole gangs only: the oldest job that fits is placed with all its ranks or
// not at all, and a job that must wait for devices holds back those behind it, so that a large gang
// cannot be starved by small ones. Three kinds of jobs hold nobody back: those larger than all that
// is registered (no waiting helps them), those in a retry backoff, and those that need another kind
// of device than the one that is waited for.
#ifndef SWITCHYARD_SERVER_SCHEDULER_POLICY_H_
#define SWITCHYARD_SERVER_SCHEDULER_POLICY_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "server/plan.h"
#include "server/snapshot.h"

namespace switchyard {

// `now` is the monotonic time that WaitingJob::not_before refers to.
Plan Decide(const ClusterSnapshot& snapshot, absl::Duration now);

// Where a gang of `num_ranks` fits on free devices of one kind: on the single node with the least
// room to spare, else over the fewest nodes, fullest first. None: it does not fit as a whole.
absl::optional<std::vector<GangMember>> FitGang(const std::vector<NodeView>& nodes,
                                                absl::string_view kind, int num_ranks);

struct KindCount {
  std::string kind;
  int total = 0;  // on leased nodes
  int free = 0;   // of these, not busy and on reachable nodes
};
// The device kinds, sorted by name.
std::vector<KindCount> CountDevices(const std::vector<NodeView>& nodes);

// The kinds a job may run on. CPU ranks serve jobs that ask for them, and others only where no GPU
// is registered at all.
std::vector<KindCount> EligibleKinds(const std::vector<KindCount>& kinds, bool cpu_only);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SCHEDULER_POLICY_H_
