// One agent process: registers its node's devices, keeps a session with the coordinator, carries
// out its orders and reports what happens.
//
// Lease: the node may run attempts until (send time of the last acknowledged heartbeat) + TTL. A
// kill budget before that the agent kills all of them, so that by the end of the lease none is
// left. Times are CLOCK_BOOTTIME, so that a suspended machine does not believe in an old lease.
//
// Threads: session (register, read orders), heartbeat (while a session is up), report, lease; one
// or two per attempt.
#ifndef SWITCHYARD_WORKER_AGENT_AGENT_H_
#define SWITCHYARD_WORKER_AGENT_AGENT_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/thread.h"
#include "worker/agent/attempt.h"
#include "worker/agent/config.h"
#include "worker/agent/coordinator_client.h"
#include "worker/agent/device_inventory.h"
#include "worker/agent/metrics.h"
#include "worker/agent/report_spool.h"

namespace switchyard {

// Before a call to the coordinator is repeated, `failures` (from 0) failed ones before: 0.1 to 5 s,
// random.
absl::Duration RetryDelay(int failures);

// Thread-safe.
class Agent {
 public:
  // Prepares the state folder and locks it: one agent per folder. Removes what an earlier process
  // left of its attempts, whose trainers died with it. Starts to register.
  // Errors: FailedPrecondition: another agent uses the folder; those of making folders.
  static absl::StatusOr<std::unique_ptr<Agent>> Start(const AgentConfig& config,
                                                      std::vector<DeviceInfo> devices,
                                                      std::shared_ptr<AgentMetrics> metrics,
                                                      Clock& clock);
  // Kills all attempts.
  ~Agent();

  // Stops all attempts with the grace period of the config, refuses new ones, and waits until all
  // is reported and acknowledged. False: not all was, within that period and some seconds.
  bool Shutdown() ABSL_LOCKS_EXCLUDED(mu_);

  AgentSnapshot Snapshot() const ABSL_LOCKS_EXCLUDED(mu_);
  const std::string& incarnation() const { return incarnation_; }

  // Readable once the coordinator has refused this agent for good: another agent of this machine
  // holds the node's name. It does not try again.
  const UniqueFd& refused() const { return refused_; }
  absl::Status refusal() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  Agent(const AgentConfig& config, std::vector<DeviceInfo> devices,
        std::shared_ptr<AgentMetrics> metrics, Clock& clock, UniqueFd lock,
        std::string state_folder);

  void SessionLoop(const StopToken& stop);
  // Registers, then reads orders until the session ends. `*was_up`: a heartbeat was acknowledged.
  absl::Status RunSession(const StopToken& stop, bool* was_up);
  absl::Status Register(const StopToken& stop);
  void HeartbeatLoop(CoordinatorSession& session, absl::Duration interval, const StopToken& stop);
  void ReportLoop(const StopToken& stop);
  void LeaseLoop(const StopToken& stop);
  // Ends the session, so that the agent registers again.
  void RestartSession(absl::string_view why) ABSL_LOCKS_EXCLUDED(mu_);

  // Errors: Aborted for an epoch lower than one seen before: an old coordinator.
  absl::Status CheckEpoch(int64_t epoch) ABSL_LOCKS_EXCLUDED(mu_);
  void HandleAck(int64_t heartbeat) ABSL_LOCKS_EXCLUDED(mu_);
  void HandleAssign(const v1::Assign& assign) ABSL_LOCKS_EXCLUDED(mu_);
  void HandleStart(const v1::Start& start) ABSL_LOCKS_EXCLUDED(mu_);
  void HandleStop(const v1::Stop& stop) ABSL_LOCKS_EXCLUDED(mu_);
  void KillStale(const google::protobuf::RepeatedPtrField<v1::AttemptRef>& attempts)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<v1::Checkpoint> Commit(v1::CommitCheckpointRequest request, const StopToken& stop);

  // The devices of an order, or why they cannot be had.
  absl::StatusOr<std::vector<DeviceInfo>> ClaimDevices(const v1::Assign& assign)
      ABSL_LOCKS_EXCLUDED(mu_);
  void ReportRefusal(const AttemptId& id, v1::FailureReason reason, absl::string_view message);
  std::shared_ptr<Attempt> Find(const AttemptId& id) const ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<std::shared_ptr<Attempt>> LiveAttempts() const ABSL_LOCKS_EXCLUDED(mu_);
  template <typename Request>
  void AddLiveAttempts(Request& request) const ABSL_LOCKS_EXCLUDED(mu_);
  // Forgets finished attempts whose reports are all acknowledged, and removes their folders.
  void RemoveAcknowledged() ABSL_LOCKS_EXCLUDED(mu_);
  bool IsConnectedLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_) { return connected_; }

  const AgentConfig config_;
  const std::vector<DeviceInfo> devices_;
  const std::shared_ptr<AgentMetrics> metrics_;
  Clock& clock_;
  const UniqueFd lock_;             // of the state folder
  const std::string state_folder_;  // config_.state_dir, absolute and without links
  const UniqueFd refused_;          // an eventfd
  const std::string incarnation_;
  CoordinatorClient client_;
  ReportSpool spool_;

  mutable absl::Mutex mu_;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
  int64_t highest_epoch_ ABSL_GUARDED_BY(mu_) = 0;
  bool connected_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<CoordinatorSession> session_ ABSL_GUARDED_BY(mu_);
  absl::Duration heartbeat_interval_ ABSL_GUARDED_BY(mu_) = absl::Seconds(5);
  absl::Duration lease_ttl_ ABSL_GUARDED_BY(mu_) = absl::Seconds(120);
  absl::Duration lease_start_ ABSL_GUARDED_BY(mu_);  // send time of the last acknowledged message
  absl::Duration last_ack_ ABSL_GUARDED_BY(mu_);     // when that acknowledgement came
  absl::Time last_ack_time_ ABSL_GUARDED_BY(mu_) = absl::UnixEpoch();  // for people
  int64_t acks_ ABSL_GUARDED_BY(mu_) = 0;
  // Heartbeats of this session on their way: number, send time.
  std::deque<std::pair<int64_t, absl::Duration>> sent_heartbeats_ ABSL_GUARDED_BY(mu_);
  std::map<AttemptId, std::shared_ptr<Attempt>> attempts_ ABSL_GUARDED_BY(mu_);
  // Highest attempt number of each job seen by this process: lower ones are refused.
  std::map<JobId, int32_t> highest_attempt_ ABSL_GUARDED_BY(mu_);

  Thread lease_thread_;
  Thread report_thread_;
  Thread session_thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_AGENT_H_
