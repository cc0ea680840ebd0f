// Which waiting gang goes where, and which running ones make room. Pure.
//
// Whole gangs only: a job is placed with all its ranks or not at all. Jobs are looked at by
// priority, then by age. The first that must wait for devices of a kind is that kind's head: nodes
// are held for it, and jobs behind it are placed only outside of them (backfill). What becomes free
// on held nodes stays free, and gangs there end some day, so that no stream of small jobs can
// starve a large gang. A hold stays on the same nodes from one decision to the next while they
// could do.
//
// A head whose priority is higher than that of running gangs takes the least valuable set of them
// (preemption.h). They stop with a checkpoint and wait in the queue again.
//
// Three kinds of jobs hold nobody back: those larger than all that is registered (no waiting helps
// them), those in a retry backoff, and those that need another kind of device.
#ifndef SWITCHYARD_SERVER_SCHEDULER_POLICY_H_
#define SWITCHYARD_SERVER_SCHEDULER_POLICY_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/plan.h"
#include "server/snapshot.h"

namespace switchyard {

// `now` is the monotonic time that WaitingJob::not_before refers to.
Plan Decide(const ClusterSnapshot& snapshot, absl::Duration now);

struct KindCount {
  std::string kind;
  int total = 0;   // on leased nodes
  int usable = 0;  // of these, on reachable nodes that nobody has cordoned
  int free = 0;    // of these, not busy
};
// The device kinds, sorted by name.
std::vector<KindCount> CountDevices(const std::vector<NodeView>& nodes);

// The kinds a job may run on. CPU ranks serve jobs that ask for them, and others only where no GPU
// is registered at all.
std::vector<KindCount> EligibleKinds(const std::vector<KindCount>& kinds, bool cpu_only);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SCHEDULER_POLICY_H_
