// What both services share: the parts they call, and what every call goes through.
#ifndef SWITCHYARD_SERVER_API_CONTEXT_H_
#define SWITCHYARD_SERVER_API_CONTEXT_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "base/clock.h"
#include "base/monitor.h"
#include "grpcpp/impl/service_type.h"
#include "grpcpp/support/status.h"
#include "server/api/status.h"
#include "server/api/stream_pump.h"
#include "server/artifacts/checkpoint_holds.h"
#include "server/artifacts/log_files.h"
#include "server/artifacts/publisher.h"
#include "server/config.h"
#include "server/error.h"
#include "server/metrics/registry.h"
#include "server/scheduler/lease.h"
#include "server/scheduler/loop.h"
#include "server/store/store.h"

namespace switchyard {

// The unary calls being answered, for a stop that lets them finish. Thread-safe.
class CallCounter {
 public:
  void Begin() ABSL_LOCKS_EXCLUDED(mu_) {
    MonitorLock lock(&mu_);
    ++num_calls_;
  }
  void End() ABSL_LOCKS_EXCLUDED(mu_) {
    MonitorLock lock(&mu_);
    --num_calls_;
  }
  // Waits until there is none. False: there still were some after `limit`.
  bool AwaitNone(absl::Duration limit) ABSL_LOCKS_EXCLUDED(mu_) {
    MonitorLock lock(&mu_);
    const auto none = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return num_calls_ == 0; };
    return mu_.AwaitWithTimeout(none, limit);
  }

 private:
  Monitor mu_;
  int num_calls_ ABSL_GUARDED_BY(mu_) = 0;
};

struct ServiceContext {
  const ServerConfig& config;
  const LeaseConfig& lease_config;
  Clock& clock;
  Store& store;
  LeaseTable& leases;
  SchedulerLoop& loop;
  StreamPump& pump;
  StreamPump& download_pump;  // of streams that read artifacts, which may be slow
  Publisher& publisher;
  CheckpointHolds& holds;
  LogFiles& logs;
  Metrics& metrics;
  const std::atomic<bool>& ready;  // recovery is done, shutdown has not begun
  CallCounter& calls;

  absl::Status CheckReady() const {
    if (ready) return absl::OkStatus();
    return MakeError(absl::StatusCode::kUnavailable, "NOT_SERVING",
                     "the coordinator is starting or stopping; try again");
  }

  // A unary call: refused until recovery is done, counted, timed, its status made gRPC's.
  grpc::Status Unary(const char* method, const std::function<absl::Status()>& body) const {
    const absl::Duration start = clock.Monotonic();
    calls.Begin();  // before `ready` is looked at: a stop clears it, then waits
    absl::Status status = CheckReady();
    if (status.ok()) status = body();
    calls.End();
    metrics.RpcDone(method, absl::StatusCodeToString(status.code()),
                    absl::ToDoubleSeconds(clock.Monotonic() - start));
    return ToGrpcStatus(status);
  }
};

// Topics of the pump.
inline std::string TopicOf(const JobId& job) { return "job:" + job.value(); }
inline std::string TopicOf(const NodeId& node) { return "node:" + node.value(); }

// Service methods to register with a grpc::ServerBuilder; live as long as the server.
std::unique_ptr<grpc::Service> MakeJobService(const ServiceContext& context);
std::unique_ptr<grpc::Service> MakeAdminService(const ServiceContext& context);
std::unique_ptr<grpc::Service> MakeCheckpointService(const ServiceContext& context);
std::unique_ptr<grpc::Service> MakeAgentLink(const ServiceContext& context);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_CONTEXT_H_
