// What agents say and what they are told, without a transport: a message in, a message out.
// AgentLink (gRPC) and the simulation (tests/simulation) run this same code.
#ifndef SWITCHYARD_SERVER_API_AGENT_GATEWAY_H_
#define SWITCHYARD_SERVER_API_AGENT_GATEWAY_H_

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/optional.h"
#include "server/artifacts/log_files.h"
#include "server/artifacts/publisher.h"
#include "server/records.h"
#include "server/scheduler/lease.h"
#include "server/store/store.h"
#include "switchyard/v1/agent_link.pb.h"

namespace switchyard {

namespace v1 = ::switchyard::v1;

// After a start, before anything is served: finishes the publications that a crash has left, and
// gives every stored node a whole lease.
absl::Status RestoreState(Store& store, LeaseTable& leases, Publisher& publisher);

// Thread-safe; the references outlive it.
class AgentGateway {
 public:
  AgentGateway(Store& store, LeaseTable& leases, const LeaseConfig& lease_config,
               Publisher& publisher, LogFiles& logs, std::string artifact_root)
      : store_(store),
        leases_(leases),
        lease_config_(lease_config),
        publisher_(publisher),
        logs_(logs),
        artifact_root_(std::move(artifact_root)) {}

  // A new life of a node's agent, or the same one again; its lease begins.
  // Errors: InvalidArgument IDENTITY_INVALID, DEVICES_INVALID; as LeaseTable::Acquire.
  absl::StatusOr<v1::RegisterResponse> Register(const v1::RegisterRequest& request);

  // Stores the bytes of logs, then the reports that acknowledge them.
  // Errors: Aborted STALE_INCARNATION; those of files.
  absl::StatusOr<v1::ReportResponse> Report(const v1::ReportRequest& request);

  // Errors: as Publisher::Commit.
  absl::StatusOr<CheckpointRecord> CommitCheckpoint(const v1::CommitCheckpointRequest& request);

 private:
  friend class AgentSession;
  absl::Status WriteLogs(const NodeLease& from, const v1::ReportRequest& request);

  Store& store_;
  LeaseTable& leases_;
  const LeaseConfig lease_config_;
  Publisher& publisher_;
  LogFiles& logs_;
  const std::string artifact_root_;
};

// One agent's stream: acknowledges heartbeats, and sends each order once; a stop again when its
// grace period became shorter. What an agent missed is
// sent again by the stream after. Heartbeat on one thread, Next on another.
class AgentSession {
 public:
  explicit AgentSession(AgentGateway& gateway) : gateway_(gateway) {}

  // Errors: InvalidArgument IDENTITY_INVALID, also for another sender than before; Aborted
  // STALE_INCARNATION. The stream ends with them.
  absl::Status Heartbeat(const v1::SessionRequest& request) ABSL_LOCKS_EXCLUDED(mu_);

  // The next message; none: nothing to say until something changes. `orders_changed`: the node's
  // orders may differ from those read before.
  // Errors: Aborted STALE_INCARNATION: the stream ends; others: ask again later.
  absl::StatusOr<absl::optional<v1::SessionResponse>> Next(bool orders_changed)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Whom the stream belongs to; none before the first heartbeat.
  absl::optional<NodeLease> lease() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  enum class Sent { kAssign, kStart, kStop, kKill };

  absl::StatusOr<absl::optional<v1::SessionResponse>> NextOrder(const NodeLease& lease,
                                                                const std::vector<AttemptId>& live);

  AgentGateway& gateway_;

  // Next's.
  bool orders_dirty_ = true;
  std::deque<OrderRecord> orders_;  // at most two per open attempt of the node
  std::map<std::pair<AttemptId, Sent>, absl::Duration> sent_;  // -> a stop's grace period

  mutable absl::Mutex mu_;
  absl::optional<NodeLease> lease_ ABSL_GUARDED_BY(mu_);
  int64_t heartbeat_ ABSL_GUARDED_BY(mu_) = 0;
  bool ack_due_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<AttemptId> live_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_AGENT_GATEWAY_H_
