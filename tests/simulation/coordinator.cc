#include "tests/simulation/coordinator.h"

#include <stdio.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/match.h"
#include "base/log.h"

namespace switchyard::simulation {
namespace {

constexpr absl::Duration kHousekeepingEvery = absl::Seconds(20);
constexpr absl::Duration kGarbageGrace = absl::Minutes(3);
constexpr absl::Duration kKeepHistory = absl::Minutes(5);

// A write that the real disk would refuse: pages are needed for it. What only ends a transaction is
// let through.
bool NeedsSpace(absl::string_view sql) {
  return absl::StartsWith(sql, "INSERT") || absl::StartsWith(sql, "UPDATE") ||
         absl::StartsWith(sql, "COMMIT");
}

}  // namespace

SimCoordinator::Parts::Parts(SimCoordinator& self, std::unique_ptr<Store> opened)
    : store(std::move(opened)),
      leases(self.options_.lease, self.world_.clock()),
      holds(self.world_.clock()),
      publisher(*store, self.options_.artifact_root, /*verify_checksums=*/true,
                /*checker=*/nullptr, &holds),
      housekeeper(*store, publisher, holds, self.world_.clock(), kGarbageGrace),
      logs(self.options_.folder + "/logs"),
      loop(
          *store, leases, self.world_.clock(),
          [this](const JobRecord& job) { return publisher.ResumePath(job); },
          [world = &self.world_](const NodeId&) { world->Count("coordinator: lease expired"); }),
      gateway(*store, leases, self.options_.lease, publisher, logs, self.options_.artifact_root) {}

void SimCoordinator::Start() {
  if (parts_ != nullptr) return;
  StoreOptions options;
  options.folder = options_.folder;
  options.num_readers = 1;
  options.inline_writes = true;
  options.retry_backoff = options_.retry_backoff;
  options.statement_hook = [this](absl::string_view sql) { return OnStatement(sql); };
  options.on_fatal = [this](const absl::Status&) { doomed_ = true; };
  options.on_commit_seconds = [this](double) {
    if (!std::exchange(kill_after_commit_, false)) return;
    world_.Count("coordinator: killed after a commit");
    doomed_ = true;
  };
  absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(std::move(options), world_.clock());
  if (!store.ok()) {
    world_.Violate(absl::StrCat("the store does not open: ", store.status().ToString()));
    return;
  }
  ++num_starts_;
  doomed_ = false;
  paused_until_ = absl::ZeroDuration();
  world_.Trace("coordinator starts, epoch ", (*store)->epoch());
  (*store)->Subscribe([this](const ChangeSet& changes) { OnCommit(changes); });
  parts_ = std::make_unique<Parts>(*this, *std::move(store));
  observer_.on_opened(*parts_->store);
  Enter([this](bool) {
    const absl::Status restored = RestoreState(*parts_->store, parts_->leases, parts_->publisher);
    if (!restored.ok()) {
      world_.Trace("coordinator cannot start: ", restored.ToString());
      doomed_ = true;
    }
  });
  observer_.on_restored();
  if (parts_ != nullptr) Tick(num_starts_);
}

void SimCoordinator::Kill() {
  if (parts_ == nullptr) return;
  doomed_ = true;
  if (!in_work_) Die();
}

void SimCoordinator::Die() {
  world_.Trace("coordinator is dead");
  UndoRenames();
  std::vector<std::weak_ptr<Stream>> streams = std::move(parts_->streams);
  parts_.reset();
  statements_left_.reset();
  kill_after_commit_ = kill_in_publication_ = fail_commit_ = wake_armed_ = false;
  for (const std::weak_ptr<Stream>& weak : streams) {
    if (const std::shared_ptr<Stream> stream = weak.lock()) {
      EndStream(stream, absl::UnavailableError("simulated: connection reset"));
    }
  }
  world_.After(world_.random().Spread(absl::Milliseconds(200), absl::Seconds(60)),
               [this] { Start(); });
}

// `work` that is killed after a commit runs on and moves files, which a dead process does not.
void SimCoordinator::UndoRenames() {
  const auto publishing = parts_->store->CheckpointsIn(CheckpointState::kCommitting);
  if (!publishing.ok()) return;
  for (const CheckpointRecord& c : *publishing) {
    if (::access(c.staging_path.c_str(), F_OK) == 0 || ::access(c.path.c_str(), F_OK) != 0 ||
        world_.random().Chance(0.5)) {
      continue;
    }
    if (::rename(c.path.c_str(), c.staging_path.c_str()) == 0) {
      world_.Count("publisher: killed before its rename");
    }
  }
}

void SimCoordinator::Enter(std::function<void(bool up)> work) {
  if (!up()) {
    work(false);
    return;
  }
  if (paused_until_ > world_.now()) {
    world_.At(paused_until_ + world_.random().Between(absl::ZeroDuration(), absl::Seconds(1)),
              [this, work = std::move(work)]() mutable { Enter(std::move(work)); });
    return;
  }
  in_work_ = true;
  work(true);
  in_work_ = false;
  if (doomed_) Die();
}

absl::Status SimCoordinator::OnStatement(absl::string_view sql) {
  if (doomed_) return absl::UnavailableError("simulated: killed");
  if (statements_left_ && (*statements_left_)-- == 0) {
    statements_left_.reset();
    world_.Count("coordinator: killed within a write");
    world_.Trace("coordinator is killed before: ", sql);
    doomed_ = true;
    return absl::UnavailableError("simulated: killed");
  }
  if (kill_in_publication_ && absl::StrContains(sql, "INTO checkpoints")) {
    kill_in_publication_ = false;
    kill_after_commit_ = true;
  }
  if (disk_full_ && NeedsSpace(sql)) {
    world_.Count("store: statement refused by a full disk");
    return absl::ResourceExhaustedError("simulated: disk full");
  }
  if (fail_commit_ && sql == "COMMIT") {
    fail_commit_ = false;
    world_.Count("store: commit failed with EIO");
    return absl::DataLossError("simulated: disk I/O error");
  }
  return absl::OkStatus();
}

void SimCoordinator::OnCommit(const ChangeSet& changes) {
  for (const JobChange& change : changes.job_changes) {
    world_.Tally(
        absl::StrCat("job: ", change.from ? Name(*change.from) : "-", " -> ", Name(change.to)));
    if (change.failure != FailureReason::kNone) {
      world_.Tally(absl::StrCat("job failed: ", Name(change.failure)));
    }
    world_.Trace("job moved ", change.job.value(), " to ", Name(change.to), " attempt ",
                 change.attempt);
  }
  for (const AttemptChange& change : changes.attempt_changes) {
    world_.Tally(absl::StrCat("attempt: -> ", Name(change.to)));
    world_.Trace("attempt moved ", change.attempt.job.value(), "/", change.attempt.number, " to ",
                 Name(change.to), " ", Name(change.failure));
  }
  if (changes.stale_reports > 0) world_.Count("fence: stale reports");
  observer_.on_commit(*parts_->store, changes);
  if (changes.schedule && !std::exchange(wake_armed_, true)) {
    world_.After(world_.random().Spread(absl::Milliseconds(1), absl::Milliseconds(50)),
                 [this, life = num_starts_] {
                   if (life != num_starts_) return;
                   wake_armed_ = false;
                   Enter([this, life](bool up) {
                     if (up && life == num_starts_) RunScheduler();
                   });
                 });
  }
  for (const std::weak_ptr<Stream>& weak : parts_->streams) {
    const std::shared_ptr<Stream> stream = weak.lock();
    if (stream == nullptr || stream->session == nullptr) continue;
    const absl::optional<NodeLease> lease = stream->session->lease();
    if (!lease || !changes.nodes.contains(lease->node)) continue;
    stream->orders_changed = true;
    ArmPump(stream, world_.random().Spread(absl::Microseconds(50), absl::Milliseconds(20)));
  }
}

void SimCoordinator::Tick(int64_t life) {
  Enter([this, life](bool up) {
    if (!up || life != num_starts_) return;
    RunScheduler();
    if (!doomed_) KeepHouse();
  });
  if (life != num_starts_ || parts_ == nullptr) return;
  world_.After(options_.tick, [this, life] {
    if (life == num_starts_ && parts_ != nullptr) Tick(life);
  });
}

void SimCoordinator::RunScheduler() {
  const absl::Status status = parts_->loop.RunOnce();
  if (status.ok()) return;
  world_.Count("scheduler: round failed");
  if (!doomed_ && !disk_full_) {
    world_.Violate(absl::StrCat("a scheduling round failed: ", status.ToString()));
  }
}

void SimCoordinator::KeepHouse() {
  if (world_.now() < parts_->next_housekeeping) return;
  parts_->next_housekeeping = world_.now() + kHousekeepingEvery;
  parts_->housekeeper.RunOnce();
  const absl::StatusOr<bool> pruned =
      parts_->store->PruneHistory(world_.clock().Now() - kKeepHistory);
  if (pruned.ok() && *pruned) world_.Count("store: history pruned");
}

std::shared_ptr<Stream> SimCoordinator::OpenStream(Network& network, Link& link) {
  auto stream = std::make_shared<Stream>();
  stream->up = std::make_shared<Pipe>(network, link, Direction::kUp);
  stream->down = std::make_shared<Pipe>(network, link, Direction::kDown);
  return stream;
}

void SimCoordinator::OnHeartbeat(const std::shared_ptr<Stream>& stream,
                                 const v1::SessionRequest& request) {
  Enter([this, stream, request](bool up) {
    if (!up) {
      EndStream(stream, absl::UnavailableError("simulated: connection refused"));
      return;
    }
    if (stream->dropped) return;  // a message that was still on its way
    if (stream->session == nullptr) {
      stream->session = std::make_shared<AgentSession>(parts_->gateway);
      stream->orders_changed = true;
      parts_->streams.push_back(stream);
    }
    const absl::Status status = stream->session->Heartbeat(request);
    if (!status.ok()) {
      EndStream(stream, status);
      return;
    }
    Pump(stream);
  });
}

void SimCoordinator::ArmPump(const std::shared_ptr<Stream>& stream, absl::Duration delay) {
  if (std::exchange(stream->pump_armed, true)) return;
  world_.After(delay, [this, stream] {
    stream->pump_armed = false;
    Enter([this, stream](bool up) {
      if (up && stream->session != nullptr) Pump(stream);
    });
  });
}

void SimCoordinator::Pump(const std::shared_ptr<Stream>& stream) {
  while (!doomed_) {
    absl::StatusOr<absl::optional<v1::SessionResponse>> message =
        stream->session->Next(std::exchange(stream->orders_changed, false));
    if (doomed_) return;
    if (!message.ok()) {
      if (absl::IsAborted(message.status())) {
        EndStream(stream, message.status());
      } else {
        ArmPump(stream, absl::Seconds(2));
      }
      return;
    }
    if (!message->has_value()) return;
    stream->down->Send([stream, response = **std::move(message)] {
      if (stream->on_message) stream->on_message(response);
    });
  }
}

void SimCoordinator::EndStream(const std::shared_ptr<Stream>& stream, const absl::Status& status) {
  stream->session = nullptr;
  stream->dropped = true;
  stream->down->Send([stream, status] {
    if (stream->on_end) stream->on_end(status);
  });
}

}  // namespace switchyard::simulation
