// A JobService in this process for tests of the command line: answers are set, requests are kept.
#ifndef SWITCHYARD_CLIENT_FAKE_JOB_SERVICE_H_
#define SWITCHYARD_CLIENT_FAKE_JOB_SERVICE_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "grpcpp/grpcpp.h"
#include "switchyard/v1/admin_service.grpc.pb.h"
#include "switchyard/v1/checkpoint_service.grpc.pb.h"
#include "switchyard/v1/job_service.grpc.pb.h"

namespace switchyard {

// A status with google.rpc.ErrorInfo, as the coordinator makes them.
grpc::Status ErrorWithInfo(grpc::StatusCode code, const std::string& message,
                           const std::string& reason);

// Answers every call with `node`, and keeps what was asked: "drain n1: why".
class FakeAdminService final : public v1::AdminService::Service {
 public:
  v1::Node node;
  std::vector<std::string> asked;

  grpc::Status ListNodes(grpc::ServerContext*, const v1::ListNodesRequest*,
                         v1::ListNodesResponse*) override;
  grpc::Status CordonNode(grpc::ServerContext*, const v1::CordonNodeRequest*,
                          v1::CordonNodeResponse*) override;
  grpc::Status DrainNode(grpc::ServerContext*, const v1::DrainNodeRequest*,
                         v1::DrainNodeResponse*) override;
  grpc::Status ResumeNode(grpc::ServerContext*, const v1::ResumeNodeRequest*,
                          v1::ResumeNodeResponse*) override;
  grpc::Status ConfirmNodeDead(grpc::ServerContext*, const v1::ConfirmNodeDeadRequest*,
                               v1::ConfirmNodeDeadResponse*) override;
};

// One checkpoint, whose files a test sets.
class FakeCheckpointService final : public v1::CheckpointService::Service {
 public:
  // Set before the calls.
  v1::ListCheckpointsResponse list;
  std::map<std::string, std::string> files;  // name -> bytes; the manifest too
  // What happens to the next downloads, one each; empty: nothing.
  struct Mishap {
    int after_chunks = 0;
    enum { kBreak, kFlipBit, kEndEarly } what = kBreak;
  };
  std::deque<Mishap> mishaps;

  std::vector<std::string> asked;  // "pin NAME", "download FILE@OFFSET", ...

  grpc::Status ListCheckpoints(grpc::ServerContext*, const v1::ListCheckpointsRequest*,
                               v1::ListCheckpointsResponse*) override;
  grpc::Status GetCheckpoint(grpc::ServerContext*, const v1::GetCheckpointRequest*,
                             v1::GetCheckpointResponse*) override;
  grpc::Status DownloadCheckpoint(grpc::ServerContext*, const v1::DownloadCheckpointRequest*,
                                  grpc::ServerWriter<v1::DownloadCheckpointResponse>*) override;
  grpc::Status PinCheckpoint(grpc::ServerContext*, const v1::PinCheckpointRequest*,
                             v1::PinCheckpointResponse*) override;
  grpc::Status UnpinCheckpoint(grpc::ServerContext*, const v1::UnpinCheckpointRequest*,
                               v1::UnpinCheckpointResponse*) override;
  grpc::Status DeleteCheckpoint(grpc::ServerContext*, const v1::DeleteCheckpointRequest*,
                                v1::DeleteCheckpointResponse*) override;

 private:
  absl::Mutex mu_;
};

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
  v1::PlanJobResponse plan;
  std::deque<WatchScript> watches;  // one per WatchJob call; the last stays
  std::deque<LogScript> logs;

  // What was asked, in order.
  std::vector<v1::CreateJobRequest> created;
  std::vector<v1::ListJobsRequest> listed;
  std::vector<v1::CancelJobRequest> cancelled;
  std::vector<v1::PauseJobRequest> paused;
  std::vector<v1::ResumeJobRequest> resumed;
  std::vector<v1::RetryJobRequest> retried;
  std::vector<v1::WatchJobRequest> watched;
  std::vector<v1::ReadLogsRequest> read;
  std::vector<std::string> gotten;

  FakeAdminService admin;
  FakeCheckpointService checkpoints;

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
  grpc::Status PauseJob(grpc::ServerContext*, const v1::PauseJobRequest*,
                        v1::PauseJobResponse*) override;
  grpc::Status ResumeJob(grpc::ServerContext*, const v1::ResumeJobRequest*,
                         v1::ResumeJobResponse*) override;
  grpc::Status RetryJob(grpc::ServerContext*, const v1::RetryJobRequest*,
                        v1::RetryJobResponse*) override;
  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest*,
                        grpc::ServerWriter<v1::WatchJobResponse>*) override;
  grpc::Status ReadLogs(grpc::ServerContext*, const v1::ReadLogsRequest*,
                        grpc::ServerWriter<v1::ReadLogsResponse>*) override;
  grpc::Status PlanJob(grpc::ServerContext*, const v1::PlanJobRequest*,
                       v1::PlanJobResponse*) override;

 private:
  // The next set failure, or OK.
  grpc::Status NextFailureLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  absl::Mutex mu_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_FAKE_JOB_SERVICE_H_
