// One agent process: registers its node's devices, keeps a session with the coordinator, carries
// out its orders and reports what happens. What it decides is in AgentCore (core.h); this is the
// shell with threads, calls, files and processes.
//
// Its state folder makes it who it is: an agent that starts on the folder of a dead one, in the
// same boot, continues that one's incarnation: the orders it accepted (journal), the reports that
// are not acknowledged (spool), the trainers that run (attempts/<...>).
//
// Threads: session (register, read orders), heartbeat (while a session is up), report, time (lease,
// devices), act (carries out the core's actions, in order); one or two per attempt.
#ifndef SWITCHYARD_WORKER_AGENT_AGENT_H_
#define SWITCHYARD_WORKER_AGENT_AGENT_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/monitor.h"
#include "base/thread.h"
#include "worker/agent/attempt.h"
#include "worker/agent/config.h"
#include "worker/agent/coordinator_client.h"
#include "worker/agent/core.h"
#include "worker/agent/device_inventory.h"
#include "worker/agent/journal.h"
#include "worker/agent/metrics.h"
#include "worker/agent/report_spool.h"
#include "worker/agent/spool_file.h"

namespace switchyard {

// Before a call to the coordinator is repeated, `failures` (from 0) failed ones before: 0.1 to 5 s,
// random; at most an eighth of the lease, which would else end while the coordinator is back.
absl::Duration RetryDelay(int failures, absl::Duration lease_ttl);

// Who the agent is, in "<state-dir>/identity.json".
struct AgentIdentity {
  std::string incarnation;
  std::string boot_id;
  int64_t report_base = 0;  // ReportSpool
  std::string folder_id;    // drawn when the folder was made
  int64_t boots = 0;        // of the machine, since the folder was made; this one included
};

// Thread-safe.
class Agent {
 public:
  // Prepares the state folder and locks it: one agent per folder. Takes up what an earlier process
  // left there. Starts to register.
  // Errors: FailedPrecondition: another agent uses the folder; DataLoss: its journal makes no
  // sense; those of files.
  static absl::StatusOr<std::unique_ptr<Agent>> Start(const AgentConfig& config,
                                                      std::vector<DeviceInfo> devices,
                                                      std::shared_ptr<AgentMetrics> metrics,
                                                      Clock& clock);
  // Kills all attempts.
  ~Agent();

  // Stops all attempts with the grace period of the config, refuses new ones, and waits until all
  // is reported and acknowledged. False: not all was, within that period and some seconds.
  bool Shutdown() ABSL_LOCKS_EXCLUDED(mu_);
  // Kills all attempts, and waits for their end at most `timeout`.
  void KillAttempts(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);

  AgentSnapshot Snapshot() const ABSL_LOCKS_EXCLUDED(mu_);
  std::string incarnation() const ABSL_LOCKS_EXCLUDED(mu_);

  // Readable once the coordinator has refused this agent for good: another agent of this machine
  // holds the node's name. It does not try again.
  const UniqueFd& refused() const { return refused_; }
  absl::Status refusal() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // All that Start reads before there are threads.
  struct Opened {
    UniqueFd lock;             // of the state folder
    std::string state_folder;  // config.state_dir, absolute and without links
    AgentIdentity identity;
    bool rebooted = false;  // since the life before
    MappedFile<LeaseFile> lease;
    std::unique_ptr<FileJournal> journal;
    AgentMemory memory;
    std::unique_ptr<FileSpoolStorage> spool;
    std::set<int> withheld;
  };

  Agent(const AgentConfig& config, std::vector<DeviceInfo> devices,
        std::shared_ptr<AgentMetrics> metrics, Clock& clock, Opened opened);
  // Reads the spool, and moves the attempts' positions to what it knows. Returns the attempts whose
  // Finished report is in it.
  std::set<AttemptId> RecoverSpool();
  // Ends and removes attempts that the journal does not know.
  void SweepUnknown() const;

  void SessionLoop(const StopToken& stop);
  // Registers, then reads orders until the session ends. `*was_up`: a heartbeat was acknowledged.
  absl::Status RunSession(const StopToken& stop, bool* was_up);
  absl::Status Register(const StopToken& stop);
  void HeartbeatLoop(CoordinatorSession& session, absl::Duration interval, const StopToken& stop);
  void ReportLoop(const StopToken& stop);
  void TimeLoop(const StopToken& stop);
  void ActLoop(const StopToken& stop);

  // Lets the core take an input; what follows is carried out by the act thread, but for what is
  // only a store: deadlines, ends of sessions. The core writes its journal under the lock: an order
  // is durable before anything can follow from it, and orders are few.
  template <typename Input>
  void Drive(Input input) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status TakeActionsLocked(absl::StatusOr<AgentActions> actions)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndSessionLocked(const std::string& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RenewIncarnationLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Act(const AgentAction& action) ABSL_LOCKS_EXCLUDED(mu_);
  void Launch(const AttemptId& id, bool adopt) ABSL_LOCKS_EXCLUDED(mu_);
  AttemptHooks MakeHooks(const AttemptId& id);
  absl::StatusOr<v1::Checkpoint> Commit(v1::CommitCheckpointRequest request, const StopToken& stop);
  void KillStale(const google::protobuf::RepeatedPtrField<v1::AttemptRef>& attempts)
      ABSL_LOCKS_EXCLUDED(mu_);
  void Acknowledge(const std::string& incarnation, int64_t number) ABSL_LOCKS_EXCLUDED(mu_);
  // Lets the core forget ended attempts whose reports are all acknowledged.
  void NoteDrained() ABSL_LOCKS_EXCLUDED(mu_);
  void CheckWithheld() ABSL_LOCKS_EXCLUDED(mu_);
  // Takes the devices as withheld_, here and for the next life of this agent.
  void SetWithheldLocked(std::set<int> devices) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::vector<int> BusyDevices(const std::vector<DeviceInfo>& devices) const;

  absl::Duration LeaseTtl() const ABSL_LOCKS_EXCLUDED(mu_);
  std::shared_ptr<Attempt> Find(const AttemptId& id) const ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<std::shared_ptr<Attempt>> LiveAttempts() const ABSL_LOCKS_EXCLUDED(mu_);
  bool CanReportLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_) { return core_.connected(); }
  bool HasActionLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return !actions_.empty() || acting_ends_;
  }
  bool NoneLiveLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return core_.Live().empty() && actions_.empty();
  }

  const AgentConfig config_;
  const std::vector<DeviceInfo> devices_;
  const std::shared_ptr<AgentMetrics> metrics_;
  Clock& clock_;
  const Opened opened_;
  const UniqueFd refused_;  // an eventfd
  CoordinatorClient client_;
  ReportSpool spool_;

  mutable Monitor mu_;
  AgentIdentity identity_ ABSL_GUARDED_BY(mu_);
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<CoordinatorSession> session_ ABSL_GUARDED_BY(mu_);
  absl::Time last_ack_time_ ABSL_GUARDED_BY(mu_) = absl::UnixEpoch();  // for people
  AgentCore core_ ABSL_GUARDED_BY(mu_);
  std::deque<AgentAction> actions_ ABSL_GUARDED_BY(mu_);
  bool acting_ends_ ABSL_GUARDED_BY(mu_) = false;
  std::map<AttemptId, std::shared_ptr<Attempt>> attempts_ ABSL_GUARDED_BY(mu_);
  // Attempts whose Finished report is in the spool.
  std::set<AttemptId> reported_ ABSL_GUARDED_BY(mu_);
  std::set<int> withheld_ ABSL_GUARDED_BY(mu_);

  Thread act_thread_;
  Thread time_thread_;
  Thread report_thread_;
  Thread session_thread_;
};

template <typename Input>
void Agent::Drive(Input input) {
  MonitorLock lock(&mu_);
  TakeActionsLocked(input(core_)).IgnoreError();
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_AGENT_H_
