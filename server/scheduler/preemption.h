// Which gangs make room for a job of higher priority. Pure.
#ifndef SWITCHYARD_SERVER_SCHEDULER_PREEMPTION_H_
#define SWITCHYARD_SERVER_SCHEDULER_PREEMPTION_H_

#include <utility>
#include <vector>

#include "server/scheduler/free_index.h"
#include "server/snapshot.h"

namespace switchyard {

struct Victims {
  // Whole gangs, none of which could be left out. Empty: nothing has to be stopped, because enough
  // devices come free by stops that are under way; or it cannot be done.
  std::vector<Preemption> gangs;
  // Devices that will be free, by node, sorted: of the gangs above and of those that stop already.
  std::vector<std::pair<NodeId, int>> freed;
  bool possible = false;  // free devices and freed ones are enough
};

// The least valuable set: lower priority first; then those that can resume, then the youngest, then
// the smallest. Only gangs of a lower priority than the job's are taken. Devices on nodes of
// `avoided` (sorted) count for nothing: the job would not be placed there.
Victims ChooseVictims(const WaitingJob& job, const std::vector<GangOnNodes>& gangs,
                      const FreeIndex& index, const std::vector<NodeId>& avoided);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SCHEDULER_PREEMPTION_H_
