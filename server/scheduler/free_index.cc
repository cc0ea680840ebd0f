#include "server/scheduler/free_index.h"

#include <algorithm>
#include <utility>

namespace switchyard {

FreeIndex::FreeIndex(const std::vector<NodeView>& nodes, std::string kind)
    : kind_(std::move(kind)) {
  for (const NodeView& node : nodes) {
    Slot slot{&node, 0, 0, false};
    const bool open = node.usable();
    int devices = 0;
    for (const DeviceView& d : node.devices) {
      if (d.kind != kind_) continue;
      ++devices;
      slot.usable += open ? 1 : 0;
      slot.free += open && !d.busy ? 1 : 0;
    }
    total_ += devices;
    if (slot.usable == 0) continue;
    usable_ += slot.usable;
    free_ += slot.free;
    const size_t count = static_cast<size_t>(slot.free);
    if (by_free_.size() <= count) by_free_.resize(count + 1);
    by_free_[count].insert(by_free_[count].end(), static_cast<int>(slots_.size()));
    slots_.push_back(slot);
  }
}

int FreeIndex::FindSlot(const NodeId& node) const {
  const auto it = std::lower_bound(slots_.begin(), slots_.end(), node,
                                   [](const Slot& s, const NodeId& id) { return s.node->id < id; });
  if (it == slots_.end() || it->node->id != node) return -1;
  return static_cast<int>(it - slots_.begin());
}

bool FreeIndex::IsUsable(const NodeId& node) const { return FindSlot(node) >= 0; }

bool FreeIndex::Avoids(int slot, const std::vector<NodeId>& avoided) const {
  return !avoided.empty() &&
         std::binary_search(avoided.begin(), avoided.end(), slots_[slot].node->id);
}

GangMember FreeIndex::TakeFrom(int slot, int count) {
  Slot& s = slots_[slot];
  GangMember member{s.node->id, {}};
  for (const DeviceView& d : s.node->devices) {
    if (static_cast<int>(member.devices.size()) == count) break;
    if (d.busy || d.kind != kind_ || !taken_.insert({slot, d.index}).second) continue;
    member.devices.push_back(d.index);
  }
  by_free_[s.free].erase(slot);
  s.free -= count;
  by_free_[s.free].insert(slot);
  free_ -= count;
  return member;
}

absl::optional<std::vector<GangMember>> FreeIndex::Take(int num_ranks,
                                                        const std::vector<NodeId>& avoided) {
  if (free_outside_holds() < num_ranks) return absl::nullopt;
  for (size_t count = static_cast<size_t>(num_ranks); count < by_free_.size(); ++count) {
    for (const int slot : by_free_[count]) {
      if (Avoids(slot, avoided)) continue;
      return std::vector<GangMember>{TakeFrom(slot, num_ranks)};
    }
  }
  std::vector<std::pair<int, int>> parts;  // slot, devices
  int placed = 0;
  for (size_t count = by_free_.size(); count-- > 1 && placed < num_ranks;) {
    for (const int slot : by_free_[count]) {
      if (placed == num_ranks) break;
      if (Avoids(slot, avoided)) continue;
      parts.push_back({slot, std::min(static_cast<int>(count), num_ranks - placed)});
      placed += parts.back().second;
    }
  }
  if (placed < num_ranks) return absl::nullopt;
  std::vector<GangMember> members;
  for (const auto& [slot, count] : parts) members.push_back(TakeFrom(slot, count));
  return members;
}

void FreeIndex::Hold(const std::vector<NodeId>& nodes) {
  for (const NodeId& node : nodes) {
    const int slot = FindSlot(node);
    if (slot < 0 || slots_[slot].held) continue;
    slots_[slot].held = true;
    by_free_[slots_[slot].free].erase(slot);
    held_ += slots_[slot].free;
  }
}

bool FreeIndex::CouldHold(int num_ranks, const std::vector<NodeId>& nodes) const {
  int usable = 0;
  for (const NodeId& node : nodes) {
    const int slot = FindSlot(node);
    if (slot >= 0) usable += slots_[slot].usable;
  }
  return usable >= num_ranks;
}

int FreeIndex::FreeOutside(const std::vector<NodeId>& avoided) const {
  int free = free_;
  for (const NodeId& node : avoided) {
    const int slot = FindSlot(node);
    if (slot >= 0) free -= slots_[slot].free;
  }
  return free;
}

std::vector<NodeId> FreeIndex::NodesToHold(int num_ranks,
                                           const std::vector<std::pair<NodeId, int>>& freed,
                                           const std::vector<NodeId>& avoided) const {
  struct Choice {
    int slot;
    int free;
  };
  std::vector<Choice> choices;
  for (size_t i = 0; i < slots_.size(); ++i) {
    choices.push_back({static_cast<int>(i), slots_[i].free});
  }
  for (const auto& [node, devices] : freed) {
    const int slot = FindSlot(node);
    if (slot >= 0) choices[slot].free += devices;
  }
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& a, const Choice& b) { return a.free > b.free; });
  std::vector<NodeId> nodes;
  int enough = 0;
  for (const Choice& choice : choices) {
    if (enough >= num_ranks) break;
    if (Avoids(choice.slot, avoided)) continue;
    enough += freed.empty() ? slots_[choice.slot].usable : choice.free;
    nodes.push_back(slots_[choice.slot].node->id);
  }
  if (enough < num_ranks) return {};
  std::sort(nodes.begin(), nodes.end());
  return nodes;
}

}  // namespace switchyard
