#include "server/scheduler/lease.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/error.h"

namespace switchyard {

LeaseTable::Entry LeaseTable::MakeEntry(const NodeLease& lease, const AgentHome& home) {
  const absl::Duration now = clock_.Monotonic();
  return {lease.incarnation, home, now + config_.ttl + config_.slack(), now, clock_.Now()};
}

void LeaseTable::Restore(const NodeLease& lease, const AgentHome& home, absl::Duration believed) {
  Entry entry = MakeEntry(lease, home);
  entry.expires =
      std::max(entry.expires, clock_.Monotonic() + believed + LeaseConfig::SlackOf(believed));
  entry.heard = -absl::InfiniteDuration();
  entry.heard_wall = absl::InfinitePast();
  absl::MutexLock lock(&mu_);
  leases_[lease.node] = std::move(entry);
}

absl::Status LeaseTable::Acquire(const NodeLease& lease, const AgentHome& home) {
  Entry entry = MakeEntry(lease, home);
  absl::MutexLock lock(&mu_);
  const auto it = leases_.find(lease.node);
  const absl::Duration now = clock_.Monotonic();
  if (it != leases_.end() && it->second.incarnation != lease.incarnation &&
      now < it->second.expires) {
    const AgentHome& holder = it->second.home;
    const bool same_boot = holder.boot_id == home.boot_id;
    const bool same_folder =
        holder.state_folder.empty() || holder.state_folder == home.state_folder;
    const bool same_agent = !home.agent_id.empty() && holder.agent_id == home.agent_id;
    if (!(same_boot && same_folder) && !(same_agent && !same_boot)) {
      return MakeError(
          absl::StatusCode::kAlreadyExists, same_boot ? "STATE_FOLDER_DIFFERS" : "NODE_NAME_TAKEN",
          absl::StrCat("register node ", lease.node.value(), " with state folder '",
                       home.state_folder, "': another agent",
                       same_boot ? " of this machine" : ", of another machine or boot,",
                       " holds this name with state folder '", holder.state_folder, "' for ",
                       absl::ToInt64Seconds(it->second.expires - now),
                       " s more; give each agent its own --node, or wait"),
          {{"node", lease.node.value()}});
    }
    // Incarnations tell the time since the boot: only those of one boot can be compared.
    const bool earlier = same_boot ? BeganBefore(lease.incarnation, it->second.incarnation)
                                   : home.boots <= holder.boots;
    if (earlier) {
      // Sent by a process that is dead: the network held it up. Its list of what is alive is old.
      return MakeError(absl::StatusCode::kAborted, "STALE_INCARNATION",
                       absl::StrCat("register node ", lease.node.value(), ": incarnation ",
                                    lease.incarnation.value(), " is not later than ",
                                    it->second.incarnation.value(), ", which holds the node"),
                       {{"node", lease.node.value()}, {"incarnation", lease.incarnation.value()}});
    }
  }
  if (it != leases_.end() && now < it->second.expires && it->second.home.boot_id == home.boot_id) {
    entry.expires = std::max(entry.expires, it->second.expires);
  }
  leases_[lease.node] = std::move(entry);
  return absl::OkStatus();
}

absl::Duration LeaseTable::LongestLeft() {
  absl::MutexLock lock(&mu_);
  absl::Duration longest = config_.ttl + config_.slack();
  const absl::Duration now = clock_.Monotonic();
  for (const auto& [node, entry] : leases_) longest = std::max(longest, entry.expires - now);
  return longest;
}

absl::Status LeaseTable::Renew(const NodeLease& lease) {
  absl::MutexLock lock(&mu_);
  const auto it = leases_.find(lease.node);
  const absl::Duration now = clock_.Monotonic();
  if (it == leases_.end() || it->second.incarnation != lease.incarnation ||
      now >= it->second.expires) {
    return absl::AbortedError(absl::StrCat("renew the lease of node ", lease.node.value(),
                                           ": incarnation ", lease.incarnation.value(),
                                           " does not hold it; register again"));
  }
  it->second.expires = now + config_.ttl + config_.slack();
  it->second.heard = now;
  it->second.heard_wall = clock_.Now();
  return absl::OkStatus();
}

absl::Status LeaseTable::DropSilent(const NodeId& node) {
  absl::MutexLock lock(&mu_);
  const auto it = leases_.find(node);
  if (it == leases_.end()) return absl::OkStatus();
  const absl::Duration silent = clock_.Monotonic() - it->second.heard;
  if (silent < config_.suspicion()) {
    return MakeError(
        absl::StatusCode::kFailedPrecondition, "NODE_ALIVE",
        absl::StrCat("node ", node.value(), " was heard from ", absl::FormatDuration(silent),
                     " ago; it counts as silent after ", absl::FormatDuration(config_.suspicion()),
                     "; to move its jobs away, drain it"),
        {{"node", node.value()}});
  }
  leases_.erase(it);
  return absl::OkStatus();
}

std::vector<NodeLease> LeaseTable::TakeExpired() {
  std::vector<NodeLease> expired;
  absl::MutexLock lock(&mu_);
  const absl::Duration now = clock_.Monotonic();
  for (auto it = leases_.begin(); it != leases_.end();) {
    if (now >= it->second.expires) {
      expired.push_back({it->first, it->second.incarnation});
      it = leases_.erase(it);
    } else {
      ++it;
    }
  }
  return expired;
}

std::map<NodeId, bool> LeaseTable::Reachable() {
  absl::MutexLock lock(&mu_);
  const absl::Duration now = clock_.Monotonic();
  std::map<NodeId, bool> out;
  for (const auto& [node, entry] : leases_) {
    out[node] = now - entry.heard < config_.suspicion();
  }
  return out;
}

std::map<NodeId, absl::Time> LeaseTable::LastHeartbeats() {
  absl::MutexLock lock(&mu_);
  std::map<NodeId, absl::Time> out;
  for (const auto& [node, entry] : leases_) out[node] = entry.heard_wall;
  return out;
}

}  // namespace switchyard
