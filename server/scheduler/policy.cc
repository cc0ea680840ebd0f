#include "server/scheduler/policy.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/scheduler/free_index.h"
#include "server/scheduler/preemption.h"

namespace switchyard {
namespace {

constexpr char kCpu[] = "cpu";
// Jobs at the front of the queue whose message follows every change of the numbers.
constexpr size_t kFollowed = 32;
// Each note is a write. Jobs that are not told now are told by the decisions that follow.
constexpr size_t kMaxNotes = 256;

// What is known of one kind in one decision.
struct Kind {
  explicit Kind(FreeIndex i) : index(std::move(i)) {}
  FreeIndex index;
  bool has_head = false;
  int waiting = 0;  // jobs that wait for it, the head too
};

class Decision {
 public:
  Decision(const ClusterSnapshot& snapshot, absl::Duration now) : snapshot_(snapshot), now_(now) {
    counts_ = CountDevices(snapshot.nodes);
    for (const KindCount& count : counts_) {
      kinds_.push_back(std::make_unique<Kind>(FreeIndex(snapshot.nodes, count.kind)));
    }
    for (const bool cpu_only : {false, true}) {
      for (const KindCount& count : EligibleKinds(counts_, cpu_only)) {
        for (const auto& kind : kinds_) {
          if (kind->index.kind() == count.kind) eligible_[cpu_only].push_back(kind.get());
        }
      }
    }
  }

  Plan Run() {
    for (const WaitingJob& job : snapshot_.waiting) Consider(job);
    return std::move(plan_);
  }

 private:
  void Consider(const WaitingJob& job) {
    if (job.not_before > now_) {
      // The time left would change at every look; the message says what does not.
      Wait(job, PendingReason::kRetryBackoff, [] { return "waits before the next attempt"; });
      return;
    }
    const std::vector<Kind*>& kinds = eligible_[job.cpu_only];
    const bool satisfiable = std::any_of(kinds.begin(), kinds.end(), [&](const Kind* k) {
      return k->index.total() >= job.num_ranks;
    });
    if (!satisfiable) {
      Wait(job, PendingReason::kConstraintsUnsatisfiable, [&] {
        return absl::StrCat("place job ", job.id.value(), ": the gang needs ", job.num_ranks,
                            job.cpu_only ? " CPU ranks" : " devices of one kind", ", ",
                            Describe(job.cpu_only, /*free=*/false));
      });
      return;
    }
    for (Kind* kind : kinds) {
      absl::optional<std::vector<GangMember>> members =
          kind->index.Take(job.num_ranks, job.avoided);
      // Nodes are avoided while others are enough.
      if (!members && !job.avoided.empty() && !EnoughWithout(*kind, job)) {
        members = kind->index.Take(job.num_ranks, {});
      }
      if (!members) continue;
      plan_.placements.push_back({job.id, job.version, *std::move(members), ""});
      return;
    }
    Block(job, kinds);
  }

  bool EnoughWithout(const Kind& kind, const WaitingJob& job) const {
    int usable = kind.index.usable();
    for (const NodeView& node : snapshot_.nodes) {
      if (!node.usable() || !std::binary_search(job.avoided.begin(), job.avoided.end(), node.id)) {
        continue;
      }
      for (const DeviceView& d : node.devices) usable -= d.kind == kind.index.kind() ? 1 : 0;
    }
    return usable >= job.num_ranks;
  }

  // The job has to wait. It may be the head of a kind that could ever hold it.
  void Block(const WaitingJob& job, const std::vector<Kind*>& kinds) {
    int ahead = 0;
    bool held_back = false;
    bool usable = false;
    bool headed = false;
    for (Kind* kind : kinds) {
      if (kind->index.usable() < job.num_ranks) continue;
      usable = true;
      ahead = std::max(ahead, kind->waiting);
      held_back = held_back || kind->index.free() >= job.num_ranks;
      kind->waiting += 1;
      // One kind is enough: it will start there.
      if (!kind->has_head && !headed) {
        BecomeHead(job, *kind);
        headed = true;
      }
    }
    const PendingReason reason = !usable     ? PendingReason::kMaintenance
                                 : held_back ? PendingReason::kPriority
                                             : PendingReason::kResources;
    Wait(job, reason, [&] {
      return absl::StrCat("place job ", job.id.value(), ": the gang needs ", job.num_ranks, ", ",
                          Describe(job.cpu_only, /*free=*/true),
                          usable ? "" : "; nodes are silent, cordoned or quarantined",
                          held_back ? "; free ones are held for a job before it" : "",
                          ahead > 0 ? absl::StrCat("; ", ahead, " jobs wait before it") : "");
    });
  }

  void BecomeHead(const WaitingJob& job, Kind& kind) {
    kind.has_head = true;
    Hold hold{job.id, kind.index.kind(), {}};
    // As in Consider: what it will not be placed on is neither freed nor held for it.
    const std::vector<NodeId> avoided =
        EnoughWithout(kind, job) ? job.avoided : std::vector<NodeId>();
    const Victims victims = ChooseVictims(job, snapshot_.gangs, kind.index, avoided);
    const auto before =
        std::find_if(snapshot_.holds.begin(), snapshot_.holds.end(),
                     [&](const Hold& h) { return h.job == hold.job && h.kind == hold.kind; });
    if (victims.possible) {
      plan_.preemptions.insert(plan_.preemptions.end(), victims.gangs.begin(), victims.gangs.end());
      hold.nodes = kind.index.NodesToHold(job.num_ranks, victims.freed, avoided);
    } else if (before != snapshot_.holds.end() && avoided.empty() &&
               kind.index.CouldHold(job.num_ranks, before->nodes)) {
      hold.nodes = before->nodes;
    }
    if (hold.nodes.empty()) hold.nodes = kind.index.NodesToHold(job.num_ranks, {}, avoided);
    kind.index.Hold(hold.nodes);
    plan_.holds.push_back(std::move(hold));
  }

  template <typename Message>
  void Wait(const WaitingJob& job, PendingReason reason, const Message& message) {
    const bool followed = blocked_++ < kFollowed;
    if (job.pending == reason && !followed) return;
    if (plan_.pending.size() >= kMaxNotes) {
      plan_.more_pending = true;
      return;
    }
    plan_.pending.push_back({job.id, job.version, reason, message()});
  }

  std::string Describe(bool cpu_only, bool free) const {
    const std::vector<Kind*>& kinds = eligible_[cpu_only];
    if (kinds.empty()) return "none is registered";
    return absl::StrCat(
        free ? "free are " : "registered are ",
        absl::StrJoin(kinds.begin(), kinds.begin() + std::min<size_t>(kinds.size(), 3), ", ",
                      [&](std::string* out, const Kind* k) {
                        absl::StrAppend(out, k->index.kind(), ": ",
                                        free ? absl::StrCat(k->index.free(), " of ") : "",
                                        k->index.total());
                      }));
  }

  const ClusterSnapshot& snapshot_;
  const absl::Duration now_;
  std::vector<KindCount> counts_;
  std::vector<std::unique_ptr<Kind>> kinds_;
  std::vector<Kind*> eligible_[2];  // by WaitingJob::cpu_only
  size_t blocked_ = 0;
  Plan plan_;
};

}  // namespace

std::vector<KindCount> CountDevices(const std::vector<NodeView>& nodes) {
  std::vector<KindCount> counts;  // a handful
  const auto count_of = [&](const std::string& kind) -> KindCount& {
    for (KindCount& c : counts) {
      if (c.kind == kind) return c;
    }
    counts.push_back({kind, 0, 0, 0});
    return counts.back();
  };
  for (const NodeView& node : nodes) {
    const bool usable = node.usable();
    for (const DeviceView& d : node.devices) {
      KindCount& count = count_of(d.kind);
      count.total += 1;
      count.usable += usable ? 1 : 0;
      count.free += usable && !d.busy ? 1 : 0;
    }
  }
  std::sort(counts.begin(), counts.end(),
            [](const KindCount& a, const KindCount& b) { return a.kind < b.kind; });
  return counts;
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

Plan Decide(const ClusterSnapshot& snapshot, absl::Duration now) {
  return Decision(snapshot, now).Run();
}

}  // namespace switchyard
