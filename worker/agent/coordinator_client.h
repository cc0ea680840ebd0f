// AgentLink from the agent's side: gRPC statuses become absl::Status, waiting calls can be stopped.
#ifndef SWITCHYARD_WORKER_AGENT_COORDINATOR_CLIENT_H_
#define SWITCHYARD_WORKER_AGENT_COORDINATOR_CLIENT_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/thread.h"
#include "switchyard/v1/agent_link.pb.h"

namespace switchyard {

// The reason of google.rpc.ErrorInfo that came with an error, such as "STALE_ATTEMPT"; or empty.
std::string ErrorReason(const absl::Status& status);

// One stream. Read and Write may run on two threads; Cancel on any.
class CoordinatorSession {
 public:
  ~CoordinatorSession();
  // False: the stream has ended.
  bool Write(const v1::SessionRequest& request);
  bool Read(v1::SessionResponse* response);
  // Makes pending Read and Write return false.
  void Cancel();
  // Why the stream ended. Once, after Read has returned false, when no Write is running.
  absl::Status Finish();

 private:
  friend class CoordinatorClient;
  struct Impl;
  explicit CoordinatorSession(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Thread-safe.
class CoordinatorClient {
 public:
  // `target`: host:port. Connects when first used, and again after a loss.
  explicit CoordinatorClient(const std::string& target);
  ~CoordinatorClient();

  // Errors: what the coordinator answered; Unavailable, DeadlineExceeded; Cancelled: `stop` came.
  absl::StatusOr<v1::RegisterResponse> Register(const v1::RegisterRequest& request,
                                                absl::Duration timeout, const StopToken& stop);
  absl::StatusOr<v1::ReportResponse> Report(const v1::ReportRequest& request,
                                            absl::Duration timeout, const StopToken& stop);
  absl::StatusOr<v1::CommitCheckpointResponse> CommitCheckpoint(
      const v1::CommitCheckpointRequest& request, absl::Duration timeout, const StopToken& stop);
  std::shared_ptr<CoordinatorSession> OpenSession();
  // At most `delay`; without a connection only until there is one.
  void WaitBeforeRetry(absl::Duration delay, const StopToken& stop);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_COORDINATOR_CLIENT_H_
