// The coordinator in a history: production code from the agent gateway down to SQLite, on a
// database that survives its process. Stands in for server/api/coordinator.cc, whose gRPC and
// threads it replaces.
#ifndef SWITCHYARD_TESTS_SIMULATION_COORDINATOR_H_
#define SWITCHYARD_TESTS_SIMULATION_COORDINATOR_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/optional.h"
#include "server/api/agent_gateway.h"
#include "server/artifacts/checkpoint_holds.h"
#include "server/artifacts/housekeeper.h"
#include "server/scheduler/loop.h"
#include "tests/simulation/network.h"
#include "tests/simulation/world.h"

namespace switchyard::simulation {

// One agent's stream. Both ends hold it; each may drop its end without the other knowing.
struct Stream {
  std::shared_ptr<Pipe> up, down;
  // The agent's end; null once it has dropped it.
  std::function<void(const v1::SessionResponse&)> on_message;
  std::function<void(const absl::Status&)> on_end;
  // The coordinator's end: made by the first heartbeat, dropped for good.
  std::shared_ptr<AgentSession> session;
  bool dropped = false;
  bool orders_changed = false;
  bool pump_armed = false;
};

struct CoordinatorOptions {
  std::string folder;         // of the database and the logs
  std::string artifact_root;  // on the same real file system, shared with the agents
  LeaseConfig lease;
  absl::Duration retry_backoff = absl::Seconds(10);
  absl::Duration tick = absl::Seconds(1);  // of the scheduler, besides its wake-ups
};

class SimCoordinator final : public Listener {
 public:
  SimCoordinator(World& world, CoordinatorOptions options)
      : world_(world), options_(std::move(options)) {}

  struct Observer {
    // After each commit, as of that moment.
    std::function<void(Store&, const ChangeSet&)> on_commit;
    // The database is open; then what a crash has left is restored.
    std::function<void(Store&)> on_opened;
    std::function<void()> on_restored;
  };
  void SetObserver(Observer observer) { observer_ = std::move(observer); }

  // Opens the database, as a supervisor that starts the process again. A start that fails (a full
  // disk) is tried again after a while.
  void Start();
  // SIGKILL now.
  void Kill();
  // SIGKILL before one of the next statements of a write, or right after a commit, before anybody
  // hears of it.
  void KillAtStatement(int statements_from_now) { statements_left_ = statements_from_now; }
  void KillAfterCommit() { kill_after_commit_ = true; }
  // As that, after the next write that moves a checkpoint.
  void KillInPublication() { kill_in_publication_ = true; }
  // The next COMMIT fails with an I/O error: the process ends by itself.
  void FailNextCommit() { fail_commit_ = true; }
  void SetDiskFull(bool full) { disk_full_ = full; }
  // SIGSTOP until then.
  void Pause(absl::Duration until) { paused_until_ = until; }

  bool up() const { return parts_ != nullptr && !doomed_; }
  bool answers() const override { return up(); }
  void Enter(std::function<void(bool up)> work) override;

  // Null: down. Reads only, outside of Enter(true).
  Store* database() { return parts_ == nullptr ? nullptr : parts_->store.get(); }

  // Only within Enter(true).
  Store& store() { return *parts_->store; }
  AgentGateway& gateway() { return parts_->gateway; }
  int64_t num_starts() const { return num_starts_; }

  // A new stream of an agent; its first heartbeat makes it known.
  std::shared_ptr<Stream> OpenStream(Network& network, Link& link);
  // At the coordinator's end.
  void OnHeartbeat(const std::shared_ptr<Stream>& stream, const v1::SessionRequest& request);

 private:
  // One life of the process.
  struct Parts {
    Parts(SimCoordinator& self, std::unique_ptr<Store> opened);
    std::unique_ptr<Store> store;
    LeaseTable leases;
    CheckpointHolds holds;
    Publisher publisher;
    Housekeeper housekeeper;  // its thread is not started
    absl::Duration next_housekeeping;
    LogFiles logs;
    SchedulerLoop loop;
    AgentGateway gateway;
    std::vector<std::weak_ptr<Stream>> streams;
  };
  absl::Status OnStatement(absl::string_view sql);
  void OnCommit(const ChangeSet& changes);
  void Tick(int64_t life);
  void RunScheduler();
  // Retention, deletion, staging folders of what is over, history.
  void KeepHouse();
  void ArmPump(const std::shared_ptr<Stream>& stream, absl::Duration delay);
  void Pump(const std::shared_ptr<Stream>& stream);
  void EndStream(const std::shared_ptr<Stream>& stream, const absl::Status& status);
  void Die();  // what is left to do when the process is gone
  void UndoRenames();

  World& world_;
  const CoordinatorOptions options_;
  Observer observer_;

  std::unique_ptr<Parts> parts_;
  int64_t num_starts_ = 0;
  bool in_work_ = false;
  bool doomed_ = false;  // killed in the middle of `work`: it runs on, but nothing of it has effect
  bool wake_armed_ = false;
  absl::Duration paused_until_;
  // Faults.
  absl::optional<int> statements_left_;
  bool kill_after_commit_ = false;
  bool kill_in_publication_ = false;
  bool fail_commit_ = false;
  bool disk_full_ = false;
};

}  // namespace switchyard::simulation

#endif  // SWITCHYARD_TESTS_SIMULATION_COORDINATOR_H_
