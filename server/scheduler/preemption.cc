#include "server/scheduler/preemption.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace switchyard {
namespace {

// Which nodes the job could use.
class Usable {
 public:
  Usable(const FreeIndex& index, const std::vector<NodeId>& avoided)
      : index_(index), avoided_(avoided) {}
  bool operator()(const NodeId& node) const {
    return index_.IsUsable(node) && !std::binary_search(avoided_.begin(), avoided_.end(), node);
  }

 private:
  const FreeIndex& index_;
  const std::vector<NodeId>& avoided_;
};

// Devices that the job could use once the gang has gone.
int Worth(const GangOnNodes& gang, const Usable& usable) {
  int devices = 0;
  for (const GangMember& member : gang.members) {
    if (usable(member.node)) devices += static_cast<int>(member.devices.size());
  }
  return devices;
}

struct Candidate {
  const GangOnNodes* gang;
  int worth;
};

bool LessValuable(const Candidate& a, const Candidate& b) {
  const auto key = [](const Candidate& c) {
    return std::make_tuple(c.gang->priority, !c.gang->resumable, -c.gang->since, c.worth);
  };
  return std::make_tuple(key(a), a.gang->job) < std::make_tuple(key(b), b.gang->job);
}

}  // namespace

Victims ChooseVictims(const WaitingJob& job, const std::vector<GangOnNodes>& gangs,
                      const FreeIndex& index, const std::vector<NodeId>& avoided) {
  Victims victims;
  const Usable usable(index, avoided);
  int missing = job.num_ranks - index.FreeOutside(avoided);
  std::vector<Candidate> candidates;
  std::vector<const GangOnNodes*> leaving;
  for (const GangOnNodes& gang : gangs) {
    if (!gang.stopping && gang.priority >= job.priority) continue;
    const int worth = Worth(gang, usable);
    if (worth == 0) continue;
    if (gang.stopping) {
      missing -= worth;
      leaving.push_back(&gang);
    } else {
      candidates.push_back({&gang, worth});
    }
  }
  std::vector<Candidate> chosen;
  if (missing > 0) {
    std::sort(candidates.begin(), candidates.end(), LessValuable);
    for (const Candidate& candidate : candidates) {
      if (missing <= 0) break;
      missing -= candidate.worth;
      chosen.push_back(candidate);
    }
  }
  if (missing > 0) return victims;
  victims.possible = true;
  // What the last one frees may make an earlier one needless; the most valuable are spared first.
  for (size_t i = chosen.size(); i-- > 0;) {
    if (missing + chosen[i].worth > 0) continue;
    missing += chosen[i].worth;
    chosen.erase(chosen.begin() + static_cast<std::ptrdiff_t>(i));
  }
  for (const Candidate& c : chosen) {
    victims.gangs.push_back({c.gang->job, c.gang->version, job.id});
    leaving.push_back(c.gang);
  }
  std::map<NodeId, int> freed;
  for (const GangOnNodes* gang : leaving) {
    for (const GangMember& member : gang->members) {
      if (usable(member.node)) {
        freed[member.node] += static_cast<int>(member.devices.size());
      }
    }
  }
  victims.freed.assign(freed.begin(), freed.end());
  return victims;
}

}  // namespace switchyard
