#include "server/scheduler/quarantine.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

int Weight(NodeSignalKind kind, bool known) {
  switch (kind) {
    case NodeSignalKind::kRegistered:
      return known ? 1 : 0;  // every agent registers with a coordinator that has started
    case NodeSignalKind::kRestarted:
    case NodeSignalKind::kLost:
    case NodeSignalKind::kBroken:
      return 2;
    case NodeSignalKind::kResumed:
      return 0;
  }
  return 0;
}

}  // namespace

absl::Duration QuarantinePeriod(const QuarantineConfig& config, int32_t level) {
  absl::Duration period = config.first;
  for (int32_t i = 1; i < level && period < config.longest; ++i) period *= 2;
  return std::min(period, config.longest);
}

QuarantineTracker::QuarantineTracker(Store& store, const QuarantineConfig& config)
    : config_(config) {
  store.Subscribe([inbox = inbox_](const ChangeSet& changes) {
    if (changes.node_signals.empty()) return;
    absl::MutexLock lock(&inbox->mu);
    inbox->signals.insert(inbox->signals.end(), changes.node_signals.begin(),
                          changes.node_signals.end());
  });
}

void QuarantineTracker::Take(absl::Duration now, const NodeSignal& signal) {
  if (signal.kind == NodeSignalKind::kResumed) {
    Track well;
    well.registered = true;
    well.seen = true;
    tracks_[signal.node] = std::move(well);
    return;
  }
  Track& track = tracks_[signal.node];
  const int weight = Weight(signal.kind, track.registered);
  track.registered = track.registered || signal.kind == NodeSignalKind::kRegistered ||
                     signal.kind == NodeSignalKind::kRestarted;
  if (weight == 0) return;
  track.last = now;
  if (!track.held) track.trouble.emplace_back(now, weight);
}

void QuarantineTracker::Judge(absl::Duration now, Track& track, const NodeView& view) {
  if (track.held) {
    if (now - track.last < QuarantinePeriod(config_, track.level)) return;
    track.held = false;
    track.released = now;
    track.message.clear();
    track.trouble.clear();
    return;
  }
  track.trouble.erase(track.trouble.begin(),
                      std::find_if(track.trouble.begin(), track.trouble.end(),
                                   [&](const auto& t) { return now - t.first <= config_.window; }));
  int sum = 0;
  for (const auto& [time, weight] : track.trouble) sum += weight;
  if (sum < config_.limit) return;
  const int32_t before = std::max(track.level, view.quarantine_level);
  const bool calm = track.released != -absl::InfiniteDuration() &&
                    track.trouble.front().first - track.released > config_.calm;
  track.level = calm ? 1 : before + 1;
  track.held = true;
  track.message = absl::StrCat("it came and went ", track.trouble.size(), " times within ",
                               absl::FormatDuration(config_.window),
                               "; nothing is placed there until it was calm for ",
                               absl::FormatDuration(QuarantinePeriod(config_, track.level)));
}

void QuarantineTracker::Collect() {
  absl::MutexLock lock(&inbox_->mu);
  signals_.insert(signals_.end(), inbox_->signals.begin(), inbox_->signals.end());
  inbox_->signals.clear();
}

std::vector<QuarantineChange> QuarantineTracker::Update(absl::Duration now,
                                                        const std::vector<NodeView>& nodes) {
  if (!started_) {
    started_ = true;
    for (const NodeView& node : nodes) {
      if (node.quarantined) tracks_[node.id];
    }
  }
  for (const NodeSignal& signal : signals_) Take(now, signal);
  signals_.clear();
  std::vector<QuarantineChange> changes;
  for (auto& [id, track] : tracks_) {
    if (track.seen && !track.held && track.trouble.empty()) continue;  // nearly all
    const auto view = std::lower_bound(nodes.begin(), nodes.end(), id,
                                       [](const NodeView& n, const NodeId& i) { return n.id < i; });
    if (view == nodes.end() || view->id != id) continue;
    if (!track.seen && view->quarantined) {
      track.held = true;
      track.level = view->quarantine_level;
      track.last = now;
    }
    track.seen = true;
    Judge(now, track, *view);
    if (track.held == view->quarantined) continue;
    changes.push_back({id, {track.level, track.message}});
  }
  return changes;
}

}  // namespace switchyard
