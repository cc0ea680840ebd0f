// Grants, renews and expires node leases (service.md 2.4). In memory only: after a start every
// stored node is given a whole lease again, so nothing expires before start + ttl + slack.
//
// An agent counts its lease from the moment it sent a heartbeat and gives up before the end; we
// count from the moment we received it, plus slack. So the agent's ranks are gone before we say so.
// Thread-safe. Monotonic time only.
#ifndef SWITCHYARD_SERVER_SCHEDULER_LEASE_H_
#define SWITCHYARD_SERVER_SCHEDULER_LEASE_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/ids.h"

namespace switchyard {

struct LeaseConfig {
  absl::Duration ttl = absl::Seconds(120);
  absl::Duration heartbeat = absl::Seconds(5);
  // Added to the TTL before a node is called lost: 2 s + 1 % for clocks that drift.
  absl::Duration slack() const { return SlackOf(ttl); }
  static absl::Duration SlackOf(absl::Duration ttl) { return absl::Seconds(2) + ttl / 100; }
  // Without a heartbeat for this long a node gets no new work; what it runs goes on.
  absl::Duration suspicion() const { return heartbeat * 3; }
};

struct NodeLease {
  NodeId node;
  Incarnation incarnation;
  friend bool operator==(const NodeLease&, const NodeLease&) = default;
};

// What tells one agent from another of the same node name.
struct AgentHome {
  std::string boot_id;        // the machine, since it booted
  std::string state_folder;   // the agent on it, since it locks this folder; empty: not known
  std::string agent_id = {};  // the folder and its machine over all boots; empty: not known
  int64_t boots = 0;          // counted in the folder: of two boots, the later one has more
};

class LeaseTable {
 public:
  LeaseTable(const LeaseConfig& config, Clock& clock) : config_(config), clock_(clock) {}

  // A node stored by an earlier run: leased, but not reachable until it is heard from. `believed`:
  // the lease that run may have given it, which counts when it is longer than ours.
  void Restore(const NodeLease& lease, const AgentHome& home,
               absl::Duration believed = absl::ZeroDuration()) ABSL_LOCKS_EXCLUDED(mu_);

  // For a registration. A lease that was to last longer does so until the first heartbeat: the
  // agent may never see the answer. A later life of the same agent takes over, in the same boot of
  // its machine or in a later one, which proves the end of all that ran before; Aborted
  // STALE_INCARNATION for an earlier one, whose message was held up. Errors, until the lease has
  // ended: AlreadyExists NODE_NAME_TAKEN: another machine holds the name; AlreadyExists
  // STATE_FOLDER_DIFFERS: another agent of the same machine does.
  absl::Status Acquire(const NodeLease& lease, const AgentHome& home) ABSL_LOCKS_EXCLUDED(mu_);

  // A heartbeat. Errors: Aborted: not the holder, or the lease has expired.
  absl::Status Renew(const NodeLease& lease) ABSL_LOCKS_EXCLUDED(mu_);

  // Ends the lease of a node that an operator knows to be dead; none is fine. Errors:
  // FailedPrecondition NODE_ALIVE: it was heard from lately.
  absl::Status DropSilent(const NodeId& node) ABSL_LOCKS_EXCLUDED(mu_);

  // Takes out and answers the leases that have ended.
  std::vector<NodeLease> TakeExpired() ABSL_LOCKS_EXCLUDED(mu_);

  // Until the last of the leases that are held now would end.
  absl::Duration LongestLeft() ABSL_LOCKS_EXCLUDED(mu_);

  // Leased nodes; whether they were heard from lately.
  std::map<NodeId, bool> Reachable() ABSL_LOCKS_EXCLUDED(mu_);

  // Wall-clock time of each node's last heartbeat; for metrics.
  std::map<NodeId, absl::Time> LastHeartbeats() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    Incarnation incarnation;
    AgentHome home;
    absl::Duration expires;
    absl::Duration heard;
    absl::Time heard_wall;
  };
  Entry MakeEntry(const NodeLease& lease, const AgentHome& home);

  const LeaseConfig config_;
  Clock& clock_;
  absl::Mutex mu_;
  std::map<NodeId, Entry> leases_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SCHEDULER_LEASE_H_
