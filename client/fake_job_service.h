// A JobService in this process for tests of the command line: answers are set, requests are kept.
#ifndef SWITCHYARD_CLIENT_FAKE_JOB_SERVICE_H_
#define SWITCHYARD_CLIENT_FAKE_JOB_SERVICE_H_

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "grpcpp/grpcpp.h"
#include "switchyard/v1/job_service.grpc.pb.h"

namespace switchyard {

// A status with google.rpc.ErrorInfo, as the coordinator makes them.
grpc::Status ErrorWithInfo(grpc::StatusCode code, const std::string& message,
                           const std::string& reason);

class FakeJobService final : public v1::JobService::Service {
 public:
  using WatchScript = std::function<grpc::Status(grpc::ServerContext*, const v1::WatchJobRequest&,
                                                 grpc::ServerWriter<v1::WatchJobResponse>*)>;
  using LogScript = std::function<grpc::Status(const v1::ReadLogsRequest&,
                                               grpc::ServerWriter<v1::ReadLogsResponse>*)>;

  // Set before the calls. `failures` are returned, one per unary call, before any answer.
  std::deque<grpc::Status> failures;
  v1::GetJobResponse job;
  std::vector<v1::ListJobsResponse> pages;  // of ListJobs; the token is the page's index
  v1::ListCheckpointsResponse checkpoints;
  v1::PlanJobResponse plan;
  std::deque<WatchScript> watches;  // one per WatchJob call; the last stays
  std::deque<LogScript> logs;

  // What was asked, in order.
  std::vector<v1::CreateJobRequest> created;
  std::vector<v1::ListJobsRequest> listed;
  std::vector<v1::CancelJobRequest> cancelled;
  std::vector<v1::WatchJobRequest> watched;
  std::vector<v1::ReadLogsRequest> read;
  std::vector<std::string> gotten;

  // Listens on 127.0.0.1; a second Start takes the same port again.
  void Start();
  void Stop();
  std::string address() const;

  grpc::Status CreateJob(grpc::ServerContext*, const v1::CreateJobRequest*,
                         v1::CreateJobResponse*) override;
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest*, v1::GetJobResponse*) override;
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest*,
                        v1::ListJobsResponse*) override;
  grpc::Status CancelJob(grpc::ServerContext*, const v1::CancelJobRequest*,
                         v1::CancelJobResponse*) override;
  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest*,
                        grpc::ServerWriter<v1::WatchJobResponse>*) override;
  grpc::Status ReadLogs(grpc::ServerContext*, const v1::ReadLogsRequest*,
                        grpc::ServerWriter<v1::ReadLogsResponse>*) override;
  grpc::Status PlanJob(grpc::ServerContext*, const v1::PlanJobRequest*,
                       v1::PlanJobResponse*) override;
  grpc::Status ListCheckpoints(grpc::ServerContext*, const v1::ListCheckpointsRequest*,
                               v1::ListCheckpointsResponse*) override;

 private:
  // The next set failure, or OK.
  grpc::Status NextFailureLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  absl::Mutex mu_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_FAKE_JOB_SERVICE_H_
