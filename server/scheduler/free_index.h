// How many devices are free where, by kind: answers which nodes a gang fits on in time that hardly
// depends on the size of the cluster. Not thread-safe; lives for one decision.
#ifndef SWITCHYARD_SERVER_SCHEDULER_FREE_INDEX_H_
#define SWITCHYARD_SERVER_SCHEDULER_FREE_INDEX_H_

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "server/snapshot.h"

namespace switchyard {

// The devices of one kind.
class FreeIndex {
 public:
  // `nodes`: sorted by id; outlives the index.
  FreeIndex(const std::vector<NodeView>& nodes, std::string kind);

  const std::string& kind() const { return kind_; }
  int total() const { return total_; }    // on leased nodes
  int usable() const { return usable_; }  // of these, on nodes that may get work
  int free() const { return free_; }      // of these, not busy, held ones too
  int free_outside_holds() const { return free_ - held_; }

  // Takes free devices for a gang: on the single node with the least room to spare, else over the
  // fewest nodes, fullest first. Held nodes and `avoided` (sorted) are left out. None: it does not
  // fit as a whole, and nothing is taken.
  absl::optional<std::vector<GangMember>> Take(int num_ranks, const std::vector<NodeId>& avoided);

  // From now on Take leaves these nodes out.
  void Hold(const std::vector<NodeId>& nodes);

  // Of free(), those on other nodes than `avoided` (sorted).
  int FreeOutside(const std::vector<NodeId>& avoided) const;

  // The nodes with the most free devices, none of `avoided` (sorted), where those of `freed`
  // (devices that will be free, by node, sorted) count too, until `num_ranks` devices are free on
  // them; without `freed`, until so many could ever be. Sorted by id. Empty: there are not enough.
  std::vector<NodeId> NodesToHold(int num_ranks, const std::vector<std::pair<NodeId, int>>& freed,
                                  const std::vector<NodeId>& avoided) const;
  // Whether all devices of these nodes, busy or not, are enough.
  bool CouldHold(int num_ranks, const std::vector<NodeId>& nodes) const;
  // Whether the node has devices of this kind and may get work.
  bool IsUsable(const NodeId& node) const;

 private:
  struct Slot {
    const NodeView* node = nullptr;
    int usable = 0;
    int free = 0;
    bool held = false;
  };
  int FindSlot(const NodeId& node) const;  // -1: none
  GangMember TakeFrom(int slot, int count);
  bool Avoids(int slot, const std::vector<NodeId>& avoided) const;

  const std::string kind_;
  int total_ = 0;
  int usable_ = 0;
  int free_ = 0;
  int held_ = 0;  // free devices on held nodes
  std::vector<Slot> slots_;
  std::vector<std::set<int>> by_free_;       // slots not held, by their free devices
  std::set<std::pair<int, int32_t>> taken_;  // slot, device
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_SCHEDULER_FREE_INDEX_H_
