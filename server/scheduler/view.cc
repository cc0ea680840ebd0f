#include "server/scheduler/view.h"

#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>

#include "base/status_macros.h"

namespace switchyard {

ClusterView::ClusterView(Store& store) : store_(store) {
  store.Subscribe([dirty = dirty_](const ChangeSet& changes) {
    if (changes.scheduling_jobs.empty() && changes.scheduling_nodes.empty()) return;
    absl::MutexLock lock(&dirty->mu);
    dirty->jobs.insert(changes.scheduling_jobs.begin(), changes.scheduling_jobs.end());
    dirty->nodes.insert(changes.scheduling_nodes.begin(), changes.scheduling_nodes.end());
  });
}

bool ClusterView::Before(const WaitingJob& a, const WaitingJob& b) {
  return std::make_tuple(-a.priority, a.seq) < std::make_tuple(-b.priority, b.seq);
}

absl::Status ClusterView::Refresh(absl::Duration now, const std::map<NodeId, bool>& reachable) {
  bool all = false;
  std::set<JobId> jobs;
  std::set<NodeId> nodes;
  {
    absl::MutexLock lock(&dirty_->mu);
    all = std::exchange(dirty_->all, false);
    jobs.swap(dirty_->jobs);
    nodes.swap(dirty_->nodes);
  }
  absl::Status status = ReadNodes(all, nodes);
  if (status.ok() && (all || !jobs.empty())) {
    absl::StatusOr<std::vector<JobView>> views = all ? store_.ViewJobs() : store_.ViewJobs(jobs);
    status = views.status();
    if (views.ok()) {
      if (all) {
        while (!live_.empty()) RemoveGang(live_.begin()->first);
        snapshot_.waiting.clear();
        waiting_keys_.clear();
      }
      PutJobs(now, *std::move(views));
    }
  }
  if (!status.ok()) {
    absl::MutexLock lock(&dirty_->mu);
    dirty_->all = true;
    return status;
  }
  auto lease = reachable.begin();
  for (NodeView& node : snapshot_.nodes) {
    while (lease != reachable.end() && lease->first < node.id) ++lease;
    node.reachable = lease != reachable.end() && lease->first == node.id && lease->second;
  }
  return absl::OkStatus();
}

absl::Status ClusterView::ReadNodes(bool all, const std::set<NodeId>& changed) {
  if (!all && changed.empty()) return absl::OkStatus();
  if (all) {
    ASSIGN_OR_RETURN(const std::vector<NodeRecord> records, store_.ListNodes());
    snapshot_.nodes.clear();
    for (const NodeRecord& record : records) PutNode(record);
  } else {
    for (const NodeId& id : changed) {
      ASSIGN_OR_RETURN(const NodeRecord record, store_.GetNode(id));
      PutNode(record);
    }
  }
  for (const auto& [id, job] : live_) Mark(job.parts, true);
  return absl::OkStatus();
}

NodeView* ClusterView::FindNode(const NodeId& id) {
  const auto it = std::lower_bound(snapshot_.nodes.begin(), snapshot_.nodes.end(), id,
                                   [](const NodeView& n, const NodeId& id) { return n.id < id; });
  return it != snapshot_.nodes.end() && it->id == id ? &*it : nullptr;
}

void ClusterView::PutNode(const NodeRecord& record) {
  std::vector<NodeView>& nodes = snapshot_.nodes;
  const auto it = std::lower_bound(nodes.begin(), nodes.end(), record.id,
                                   [](const NodeView& n, const NodeId& id) { return n.id < id; });
  const bool known = it != nodes.end() && it->id == record.id;
  if (record.lost) {
    if (known) nodes.erase(it);
    return;
  }
  NodeView view;
  view.id = record.id;
  view.cordoned = record.scheduling != NodeScheduling::kActive;
  view.draining = record.scheduling == NodeScheduling::kDraining;
  view.quarantined = !record.quarantine.message.empty();
  view.quarantine_level = record.quarantine.level;
  for (const DeviceRecord& d : record.devices) view.devices.push_back({d.index, d.kind, false});
  if (known) {
    *it = std::move(view);
  } else {
    nodes.insert(it, std::move(view));
  }
}

void ClusterView::Mark(const std::vector<GangMember>& members, bool busy) {
  for (const GangMember& member : members) {
    NodeView* node = FindNode(member.node);
    if (node == nullptr) continue;
    for (DeviceView& d : node->devices) {
      const bool of_gang =
          std::find(member.devices.begin(), member.devices.end(), d.index) != member.devices.end();
      if (of_gang) d.busy = busy;
    }
  }
}

WaitingJob ClusterView::ToWaiting(absl::Duration now, const JobView& job) {
  WaitingJob waiting;
  waiting.id = job.id;
  waiting.version = job.version;
  waiting.num_ranks = job.num_ranks;
  waiting.cpu_only = job.cpu_only;
  waiting.priority = job.priority;
  waiting.seq = job.seq;
  waiting.pending = job.pending;
  waiting.avoided = job.avoided;
  std::sort(waiting.avoided.begin(), waiting.avoided.end());
  waiting.not_before = -absl::InfiniteDuration();
  if (job.backoff > absl::ZeroDuration()) {
    Backoff& backoff = backoffs_[job.id.value()];
    if (backoff.attempt != job.attempt) backoff = {job.attempt, now + job.backoff};
    waiting.not_before = backoff.end;
  }
  return waiting;
}

void ClusterView::PutGang(absl::Duration now, const JobView& job) {
  GangOnNodes gang;
  gang.job = job.id;
  gang.version = job.version;
  gang.priority = job.priority;
  gang.stopping = job.state == JobState::kStopping;
  gang.resumable = job.resumable;
  gang.since = now;
  gang.members = job.parts;
  const auto [it, is_new] = gang_index_.try_emplace(job.id.value(), snapshot_.gangs.size());
  if (is_new) {
    snapshot_.gangs.push_back(std::move(gang));
    return;
  }
  GangOnNodes& old = snapshot_.gangs[it->second];
  if (live_[job.id].attempt == job.attempt) gang.since = old.since;
  old = std::move(gang);
}

void ClusterView::RemoveGang(const JobId& id) {
  live_.erase(id);
  const auto it = gang_index_.find(id.value());
  if (it == gang_index_.end()) return;
  const size_t place = it->second;
  gang_index_.erase(it);
  if (place + 1 < snapshot_.gangs.size()) {
    snapshot_.gangs[place] = std::move(snapshot_.gangs.back());
    gang_index_[snapshot_.gangs[place].job.value()] = place;
  }
  snapshot_.gangs.pop_back();
}

void ClusterView::RemoveWaiting(const std::set<JobId>& ids) {
  std::set<size_t> places;
  for (const JobId& id : ids) {
    const auto it = waiting_keys_.find(id.value());
    if (it == waiting_keys_.end()) continue;
    WaitingJob key;
    std::tie(key.priority, key.seq) = it->second;
    const auto place =
        std::lower_bound(snapshot_.waiting.begin(), snapshot_.waiting.end(), key, Before);
    places.insert(static_cast<size_t>(place - snapshot_.waiting.begin()));
    waiting_keys_.erase(it);
  }
  if (places.empty()) return;
  size_t to = *places.begin();
  for (size_t from = to; from < snapshot_.waiting.size(); ++from) {
    if (!places.empty() && *places.begin() == from) {
      places.erase(places.begin());
      continue;
    }
    snapshot_.waiting[to++] = std::move(snapshot_.waiting[from]);
  }
  snapshot_.waiting.resize(to);
}

void ClusterView::PutJobs(absl::Duration now, std::vector<JobView> jobs) {
  std::set<JobId> ids;
  for (const JobView& job : jobs) ids.insert(job.id);
  RemoveWaiting(ids);
  // First all that becomes free, then all that is taken: a device may go from one to another.
  for (const JobId& id : ids) {
    const auto old = live_.find(id);
    if (old != live_.end()) Mark(old->second.parts, false);
  }
  std::vector<WaitingJob> added;
  for (JobView& job : jobs) {
    const JobId id = job.id;
    if (job.state == JobState::kQueued) {
      RemoveGang(id);
      added.push_back(ToWaiting(now, job));
      waiting_keys_[id.value()] = {job.priority, job.seq};
      continue;
    }
    backoffs_.erase(id.value());
    const bool live = job.state == JobState::kStarting || job.state == JobState::kRunning ||
                      job.state == JobState::kStopping;
    if (!live) {
      RemoveGang(id);
      continue;
    }
    PutGang(now, job);
    Mark(job.parts, true);
    live_[id] = std::move(job);
  }
  if (added.empty()) return;
  std::sort(added.begin(), added.end(), Before);
  const auto middle = static_cast<std::ptrdiff_t>(snapshot_.waiting.size());
  snapshot_.waiting.insert(snapshot_.waiting.end(), std::make_move_iterator(added.begin()),
                           std::make_move_iterator(added.end()));
  std::inplace_merge(snapshot_.waiting.begin(), snapshot_.waiting.begin() + middle,
                     snapshot_.waiting.end(), Before);
}

}  // namespace switchyard
