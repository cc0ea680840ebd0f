#include "tests/simulation/checker.h"

#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/simulation/node.h"

namespace switchyard::simulation {
namespace {

constexpr absl::Duration kThaw = absl::Milliseconds(200);

std::string Text(const AttemptId& id) { return absl::StrCat(id.job.value(), "/", id.number); }

}  // namespace

bool IsAble(const Part& part) {
  if (!part.alive || part.node.frozen()) return false;
  const bool just_thawed = part.node.world().now() < part.thawed + kThaw;
  return !(just_thawed && part.node.Now() >= part.deadline);
}

void Checker::OnCommit(Store& store, const ChangeSet& changes) {
  // Where only steps or events came, the next change sees them; the last, CheckAll.
  std::set<JobId> changed = changes.scheduling_jobs;
  for (const JobChange& change : changes.job_changes) changed.insert(change.job);
  for (const AttemptChange& change : changes.attempt_changes) changed.insert(change.attempt.job);
  for (const CheckpointChange& change : changes.checkpoints) changed.insert(change.job);
  for (const NodeId& id : changes.scheduling_nodes) CheckNode(store, id);
  for (const JobId& id : changed) CheckJob(store, id);
  for (const JobChange& change : changes.job_changes) {
    if (change.to == JobState::kStarting) CheckPlacement(store, {change.job, change.attempt});
  }
}

void Checker::CheckAll(Store& store) {
  std::vector<JobId> ids;
  for (const auto& [id, known] : jobs_) ids.push_back(id);
  for (const JobId& id : ids) {
    CheckJob(store, id);
    const auto checkpoints = store.ListCheckpoints(id, 0, 1000);
    if (!checkpoints.ok()) continue;  // CheckJob said so
    for (const CheckpointRecord& c : *checkpoints) {
      if (::access(c.path.c_str(), F_OK) == 0) continue;
      world_.Violate(absl::StrCat("checkpoint ", c.path, " is committed and not there"));
    }
  }
}

void Checker::CheckNode(Store& store, const NodeId& id) {
  const absl::StatusOr<NodeRecord> node = store.GetNode(id);
  if (!node.ok()) {
    world_.Violate(absl::StrCat("node ", id.value(), ": ", node.status().ToString()));
    return;
  }
  if (node->quarantine.message.empty()) {
    if (quarantined_.erase(id) > 0) world_.Count("node: released from quarantine");
  } else if (quarantined_.insert(id).second) {
    world_.Count("node: quarantined");
  }
}

void Checker::CheckPlacement(Store& store, const AttemptId& id) {
  const auto reservations = store.Reservations();
  if (!reservations.ok()) {
    world_.Violate("reservations cannot be read");
    return;
  }
  for (const Reservation& r : *reservations) {
    if (!(r.attempt == id) || !quarantined_.contains(r.node)) continue;
    world_.Violate(absl::StrCat("attempt ", Text(id), " was placed on node ", r.node.value(),
                                ", which is quarantined"));
  }
}

void Checker::CheckJob(Store& store, const JobId& id) {
  const absl::StatusOr<JobRecord> job = store.GetJob(id);
  if (!job.ok()) {
    world_.Violate(absl::StrCat("job ", id.value(), " is gone: ", job.status().ToString()));
    return;
  }
  const bool is_new = !jobs_.contains(id);
  Known& known = jobs_[id];
  if (!is_new && IsFinal(known.state) && job->state != known.state) {
    world_.Violate(absl::StrCat("job ", id.value(), " left its final state ", Name(known.state)));
  }
  if (job->version < known.version) {
    world_.Violate(absl::StrCat("job ", id.value(), " went back from version ", known.version,
                                " to ", job->version));
  }
  if (IsFinal(job->state) && (is_new || !IsFinal(known.state))) ++num_final_;
  if (job->state == JobState::kStopping && known.state != JobState::kStopping) {
    world_.Tally(absl::StrCat("job: told to stop, ", Name(job->stop_reason)));
  }
  known.state = job->state;
  known.version = job->version;

  // Of a job that has ended all but the last may be gone, those too that came after its end.
  if (IsFinal(job->state)) known.last_event = std::max(known.last_event, job->first_event - 1);
  bool attempts = false;
  bool checkpoints = false;
  const absl::StatusOr<std::vector<EventRecord>> events =
      store.ReadEvents(id, known.last_event, 1000);
  if (!events.ok()) {
    world_.Violate(absl::StrCat("events: ", events.status().ToString()));
    return;
  }
  for (const EventRecord& event : *events) {
    if (event.job_seq != known.last_event + 1) {
      world_.Violate(absl::StrCat("job ", id.value(), ": event ", event.job_seq, " follows ",
                                  known.last_event));
    }
    known.last_event = event.job_seq;
    attempts |= event.kind == "ATTEMPT" || event.kind == "STATE";
    checkpoints |= event.kind == "CHECKPOINT";
    if (absl::StartsWith(event.message, "CHECKPOINT_REJECTED")) {
      world_.Count("checkpoint: rejected, an older one is used");
    }
  }
  if (is_new && known.last_event == 0) {
    world_.Violate(absl::StrCat("job ", id.value(), " was stored without an event"));
  }
  CheckParts(store, id);
  if (attempts) CheckGang(store, *job);
  if (checkpoints) CheckCheckpoints(store, *job, known);
}

void Checker::CheckParts(Store& store, const JobId& id) {
  for (const std::shared_ptr<Part>& part : trainers_.alive(id)) {
    if (!IsAble(*part)) continue;
    const auto stale = store.FindStale(NodeId(part->node.name()), {part->id});
    if (!stale.ok() || stale->empty()) continue;
    world_.Violate(absl::StrCat("attempt ", Text(part->id), " is over on node ", part->node.name(),
                                " for the coordinator, but its trainers run there"));
  }
}

void Checker::CheckGang(Store& store, const JobRecord& job) {
  if (job.current_attempt == 0) return;
  const auto attempts = store.ListAttempts(job.id);
  const auto reservations = store.Reservations();
  if (!attempts.ok() || !reservations.ok()) {
    world_.Violate("attempts or reservations cannot be read");
    return;
  }
  int num_open = 0;
  for (const AttemptRecord& attempt : *attempts) num_open += IsFinal(attempt.state) ? 0 : 1;
  const bool holds = job.state == JobState::kStarting || job.state == JobState::kRunning ||
                     job.state == JobState::kStopping;
  if (num_open != (holds ? 1 : 0)) {
    world_.Violate(absl::StrCat("job ", job.id.value(), " is ", Name(job.state), " with ", num_open,
                                " open attempts"));
  }
  int held = 0;
  for (const Reservation& r : *reservations) {
    if (r.attempt.job != job.id) continue;
    ++held;
    if (r.attempt.number != job.current_attempt) {
      world_.Violate(absl::StrCat("a device is held by ", Text(r.attempt), ", the job is at ",
                                  job.current_attempt));
    }
  }
  if (!holds && held > 0) {
    world_.Violate(absl::StrCat("job ", job.id.value(), " is ", Name(job.state), " and holds ",
                                held, " devices"));
  }
  // Devices go as parts end; until then the gang is whole.
  const AttemptState last = attempts->back().state;
  const bool whole = last == AttemptState::kReserved || last == AttemptState::kDispatched;
  if (holds && whole && held != job.needs.num_ranks) {
    world_.Violate(absl::StrCat("a partial gang: ", Text(attempts->back().id), " is ", Name(last),
                                " with ", held, " of ", job.needs.num_ranks, " devices"));
  }
}

void Checker::CheckCheckpoints(Store& store, const JobRecord& job, Known& known) {
  const auto checkpoints = store.ListCheckpoints(job.id, 0, 1000);
  if (!checkpoints.ok()) {
    world_.Violate(absl::StrCat("checkpoints: ", checkpoints.status().ToString()));
    return;
  }
  const auto attempts = store.ListAttempts(job.id);
  std::set<int64_t> steps;
  for (const CheckpointRecord& c : *checkpoints) {
    if (!steps.insert(c.step).second) {
      world_.Violate(
          absl::StrCat("job ", job.id.value(), ": two committed checkpoints of step ", c.step));
    }
    const auto [it, is_new] = known.committed.try_emplace(c.step, c.attempt);
    if (!is_new && it->second == c.attempt) continue;
    it->second = c.attempt;
    world_.Count("checkpoint: committed");
    const bool open = attempts.ok() && !attempts->empty() &&
                      attempts->back().id.number == c.attempt && !IsFinal(attempts->back().state);
    // What a crash has left is finished at the start, also when its attempt has ended since.
    if (!open && !recovering_) {
      world_.Violate(absl::StrCat("checkpoint of step ", c.step, " was committed by attempt ",
                                  c.attempt, " of ", job.id.value(), ", which is not open"));
    }
  }
}

void Checker::OnPartStarted(Store* store, const Part& part) {
  for (const std::shared_ptr<Part>& other : trainers_.alive(part.id.job)) {
    if (other->id == part.id && &other->node == &part.node && other.get() != &part) {
      world_.Violate(
          absl::StrCat("attempt ", Text(part.id), " runs twice on node ", part.node.name()));
    }
    if (other->id.number != part.id.number && IsAble(*other)) {
      world_.Violate(absl::StrCat("attempts ", part.id.number, " and ", other->id.number, " of ",
                                  part.id.job.value(), " both run"));
    }
  }
  for (const auto& [id, other] : part.node.disk().parts) {
    if (!other->alive || other.get() == &part) continue;
    for (const int32_t device : part.assign.devices()) {
      const auto& held = other->assign.devices();
      if (std::find(held.begin(), held.end(), device) == held.end()) continue;
      world_.Violate(absl::StrCat("device ", device, " of node ", part.node.name(), " runs ",
                                  Text(id), " and ", Text(part.id)));
    }
  }
  if (store == nullptr) return;
  // Trainers start only when the whole gang is prepared.
  const auto job = store->GetJob(part.id.job);
  const auto attempts = store->ListAttempts(part.id.job);
  if (!job.ok() || !attempts.ok() || static_cast<int>(attempts->size()) < part.id.number) {
    world_.Violate(absl::StrCat("attempt ", Text(part.id), " runs and is not stored"));
    return;
  }
  if (!(*attempts)[static_cast<size_t>(part.id.number - 1)].started) {
    world_.Violate(absl::StrCat("attempt ", Text(part.id), " runs on node ", part.node.name(),
                                " before the gang was started"));
  }
}

void Checker::OnEndAcknowledged(Store* store, const SimNode& node, const AttemptId& attempt) {
  if (store == nullptr) return;
  const auto stale = store->FindStale(NodeId(node.name()), {attempt});
  if (!stale.ok() || !stale->empty()) return;
  world_.Violate(absl::StrCat("the end of attempt ", Text(attempt), " on node ", node.name(),
                              " was acknowledged, but it is open for the coordinator"));
}

void Checker::OnRestored(Store& store) {
  for (const JobId& id : acknowledged_) {
    if (!store.GetJob(id).ok()) {
      world_.Violate(absl::StrCat("job ", id.value(), " was acknowledged and is lost"));
    }
  }
  for (const auto& [id, known] : jobs_) {
    const absl::StatusOr<JobRecord> job = store.GetJob(id);
    if (!job.ok() || job->state != known.state || job->version != known.version) {
      world_.Violate(absl::StrCat("job ", id.value(), " is not as it was committed"));
    }
  }
}

}  // namespace switchyard::simulation
