#include "server/scheduler/policy.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace switchyard {
namespace {

constexpr char kCpu[] = "cpu";

std::vector<int32_t> FreeDevices(const NodeView& node, absl::string_view kind) {
  std::vector<int32_t> free;
  if (!node.reachable) return free;
  for (const DeviceView& d : node.devices) {
    if (!d.busy && d.kind == kind) free.push_back(d.index);
  }
  return free;
}

std::string Describe(const std::vector<KindCount>& kinds, bool free) {
  if (kinds.empty()) return "none is registered";
  std::string out = absl::StrJoin(
      kinds.begin(), kinds.begin() + std::min<size_t>(kinds.size(), 3), ", ",
      [&](std::string* out, const KindCount& k) {
        absl::StrAppend(out, k.kind, ": ", free ? absl::StrCat(k.free, " of ") : "", k.total);
      });
  return absl::StrCat(free ? "free are " : "registered are ", out);
}

void MarkBusy(std::vector<NodeView>& nodes, const std::vector<GangMember>& members) {
  for (const GangMember& member : members) {
    for (NodeView& node : nodes) {
      if (node.id != member.node) continue;
      for (DeviceView& d : node.devices) {
        d.busy = d.busy || std::find(member.devices.begin(), member.devices.end(), d.index) !=
                               member.devices.end();
      }
    }
  }
}

}  // namespace

std::vector<KindCount> CountDevices(const std::vector<NodeView>& nodes) {
  std::map<std::string, KindCount> counts;
  for (const NodeView& node : nodes) {
    for (const DeviceView& d : node.devices) {
      KindCount& count = counts[d.kind];
      count.kind = d.kind;
      count.total += 1;
      count.free += node.reachable && !d.busy ? 1 : 0;
    }
  }
  std::vector<KindCount> out;
  for (auto& [kind, count] : counts) out.push_back(std::move(count));
  return out;
}

std::vector<KindCount> EligibleKinds(const std::vector<KindCount>& kinds, bool cpu_only) {
  const bool any_gpu =
      std::any_of(kinds.begin(), kinds.end(), [](const KindCount& k) { return k.kind != kCpu; });
  std::vector<KindCount> out;
  for (const KindCount& k : kinds) {
    if ((k.kind == kCpu) == (cpu_only || !any_gpu)) out.push_back(k);
  }
  return out;
}

absl::optional<std::vector<GangMember>> FitGang(const std::vector<NodeView>& nodes,
                                                absl::string_view kind, int num_ranks) {
  std::vector<GangMember> free;
  const size_t wanted = static_cast<size_t>(num_ranks);
  for (const NodeView& node : nodes) {
    std::vector<int32_t> devices = FreeDevices(node, kind);
    if (!devices.empty()) free.push_back({node.id, std::move(devices)});
  }
  // One node with the least room to spare.
  const GangMember* best = nullptr;
  for (const GangMember& member : free) {
    if (member.devices.size() < wanted) continue;
    if (best == nullptr || member.devices.size() < best->devices.size()) best = &member;
  }
  if (best != nullptr) {
    GangMember member = *best;
    member.devices.resize(wanted);
    return std::vector<GangMember>{std::move(member)};
  }
  std::stable_sort(free.begin(), free.end(), [](const GangMember& a, const GangMember& b) {
    return a.devices.size() > b.devices.size();
  });
  std::vector<GangMember> members;
  size_t placed = 0;
  for (GangMember& member : free) {
    if (placed == wanted) break;
    if (member.devices.size() > wanted - placed) member.devices.resize(wanted - placed);
    placed += member.devices.size();
    members.push_back(std::move(member));
  }
  if (placed < wanted) return absl::nullopt;
  return members;
}

Plan Decide(const ClusterSnapshot& snapshot, absl::Duration now) {
  Plan plan;
  std::vector<NodeView> nodes = snapshot.nodes;
  const std::vector<KindCount> all = CountDevices(nodes);
  std::map<std::string, int> waiting_for;  // kind -> jobs that wait for it
  for (const WaitingJob& job : snapshot.waiting) {
    const auto wait = [&](PendingReason reason, std::string message) {
      plan.pending.push_back({job.id, job.version, reason, std::move(message)});
    };
    if (job.not_before > now) {
      // The time left would change at every look; the message says what does not.
      wait(PendingReason::kRetryBackoff, "waits before the next attempt");
      continue;
    }
    std::vector<KindCount> kinds = EligibleKinds(all, job.cpu_only);
    const bool satisfiable = std::any_of(
        kinds.begin(), kinds.end(), [&](const KindCount& k) { return k.total >= job.num_ranks; });
    if (!satisfiable) {
      wait(PendingReason::kConstraintsUnsatisfiable,
           absl::StrCat("place job ", job.id.value(), ": the gang needs ", job.num_ranks,
                        job.cpu_only ? " CPU ranks" : " devices of one kind", ", ",
                        Describe(kinds, /*free=*/false)));
      continue;
    }
    absl::optional<std::vector<GangMember>> members;
    int ahead = 0;
    for (const KindCount& k : kinds) {
      if (k.total < job.num_ranks) continue;
      const auto held = waiting_for.find(k.kind);
      if (held != waiting_for.end()) {
        ahead = std::max(ahead, held->second);
        continue;
      }
      members = FitGang(nodes, k.kind, job.num_ranks);
      if (members) break;
    }
    if (members) {
      MarkBusy(nodes, *members);
      plan.placements.push_back({job.id, job.version, *std::move(members), ""});
      continue;
    }
    kinds = EligibleKinds(CountDevices(nodes), job.cpu_only);
    wait(PendingReason::kResources,
         absl::StrCat("place job ", job.id.value(), ": the gang needs ", job.num_ranks, ", ",
                      Describe(kinds, /*free=*/true),
                      ahead > 0 ? absl::StrCat("; ", ahead, " jobs wait before it") : ""));
    for (const KindCount& k : kinds) {
      if (k.total >= job.num_ranks) waiting_for[k.kind] += 1;
    }
  }
  return plan;
}

}  // namespace switchyard
