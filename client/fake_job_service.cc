#include "client/fake_job_service.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace switchyard {
namespace {

// The front; the last one stays for later calls.
template <typename T>
T Next(std::deque<T>& scripts) {
  SY_CHECK(!scripts.empty());
  T front = scripts.front();
  if (scripts.size() > 1) scripts.pop_front();
  return front;
}

}  // namespace

grpc::Status ErrorWithInfo(grpc::StatusCode code, const std::string& message,
                           const std::string& reason) {
  google::rpc::ErrorInfo info;
  info.set_domain("switchyard");
  info.set_reason(reason);
  google::rpc::Status details;
  details.set_code(code);
  details.set_message(message);
  details.add_details()->PackFrom(info);
  return grpc::Status(code, message, details.SerializeAsString());
}

void FakeJobService::Start() {
  grpc::ServerBuilder builder;
  int bound = 0;
  builder.AddListeningPort(absl::StrCat("127.0.0.1:", port_), grpc::InsecureServerCredentials(),
                           &bound);
  builder.RegisterService(this);
  builder.RegisterService(&admin);
  builder.RegisterService(&checkpoints);
  server_ = builder.BuildAndStart();
  SY_CHECK(server_ != nullptr && bound != 0) << "port " << port_;
  port_ = bound;
}

void FakeJobService::Stop() {
  // Calls that still run are cancelled.
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
  server_.reset();
}

std::string FakeJobService::address() const { return absl::StrCat("127.0.0.1:", port_); }

grpc::Status FakeJobService::NextFailureLocked() {
  if (failures.empty()) return grpc::Status::OK;
  const grpc::Status failure = failures.front();
  failures.pop_front();
  return failure;
}

grpc::Status FakeJobService::CreateJob(grpc::ServerContext*, const v1::CreateJobRequest* request,
                                       v1::CreateJobResponse* response) {
  absl::MutexLock lock(&mu_);
  created.push_back(*request);
  const grpc::Status failure = NextFailureLocked();
  if (!failure.ok()) return failure;
  *response->mutable_job() = request->job();
  response->mutable_job()->set_name(absl::StrCat(
      request->parent(), "/jobs/", request->job_id().empty() ? "chosen" : request->job_id()));
  response->mutable_job()->set_state(v1::Job::QUEUED);
  return failure;
}

grpc::Status FakeJobService::GetJob(grpc::ServerContext*, const v1::GetJobRequest* request,
                                    v1::GetJobResponse* response) {
  absl::MutexLock lock(&mu_);
  gotten.push_back(request->name());
  const grpc::Status failure = NextFailureLocked();
  if (failure.ok()) *response = job;
  return failure;
}

grpc::Status FakeJobService::ListJobs(grpc::ServerContext*, const v1::ListJobsRequest* request,
                                      v1::ListJobsResponse* response) {
  absl::MutexLock lock(&mu_);
  listed.push_back(*request);
  const grpc::Status failure = NextFailureLocked();
  if (!failure.ok()) return failure;
  size_t page = 0;
  if (!request->page_token().empty() && !absl::SimpleAtoi(request->page_token(), &page)) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "page_token");
  }
  *response = pages.at(page);
  if (page + 1 < pages.size()) response->set_next_page_token(absl::StrCat(page + 1));
  return failure;
}

grpc::Status FakeJobService::CancelJob(grpc::ServerContext*, const v1::CancelJobRequest* request,
                                       v1::CancelJobResponse* response) {
  absl::MutexLock lock(&mu_);
  cancelled.push_back(*request);
  const grpc::Status failure = NextFailureLocked();
  if (failure.ok()) *response->mutable_job() = job.job();
  return failure;
}

grpc::Status FakeJobService::PauseJob(grpc::ServerContext*, const v1::PauseJobRequest* request,
                                      v1::PauseJobResponse* response) {
  absl::MutexLock lock(&mu_);
  paused.push_back(*request);
  const grpc::Status failure = NextFailureLocked();
  if (failure.ok()) *response->mutable_job() = job.job();
  return failure;
}

grpc::Status FakeJobService::RetryJob(grpc::ServerContext*, const v1::RetryJobRequest* request,
                                      v1::RetryJobResponse* response) {
  absl::MutexLock lock(&mu_);
  retried.push_back(*request);
  const grpc::Status failure = NextFailureLocked();
  if (failure.ok()) *response->mutable_job() = job.job();
  return failure;
}

grpc::Status FakeJobService::ResumeJob(grpc::ServerContext*, const v1::ResumeJobRequest* request,
                                       v1::ResumeJobResponse* response) {
  absl::MutexLock lock(&mu_);
  resumed.push_back(*request);
  const grpc::Status failure = NextFailureLocked();
  if (failure.ok()) *response->mutable_job() = job.job();
  return failure;
}

grpc::Status FakeAdminService::ListNodes(grpc::ServerContext*, const v1::ListNodesRequest*,
                                         v1::ListNodesResponse* response) {
  asked.push_back("list");
  *response->add_nodes() = node;
  return grpc::Status::OK;
}

grpc::Status FakeAdminService::CordonNode(grpc::ServerContext*,
                                          const v1::CordonNodeRequest* request,
                                          v1::CordonNodeResponse* response) {
  asked.push_back(absl::StrCat("cordon ", request->node(), ": ", request->message()));
  *response->mutable_node() = node;
  return grpc::Status::OK;
}

grpc::Status FakeAdminService::DrainNode(grpc::ServerContext*, const v1::DrainNodeRequest* request,
                                         v1::DrainNodeResponse* response) {
  asked.push_back(absl::StrCat("drain ", request->node(), ": ", request->message()));
  *response->mutable_node() = node;
  return grpc::Status::OK;
}

grpc::Status FakeAdminService::ResumeNode(grpc::ServerContext*,
                                          const v1::ResumeNodeRequest* request,
                                          v1::ResumeNodeResponse* response) {
  asked.push_back(absl::StrCat("resume ", request->node()));
  *response->mutable_node() = node;
  return grpc::Status::OK;
}

grpc::Status FakeAdminService::ConfirmNodeDead(grpc::ServerContext*,
                                               const v1::ConfirmNodeDeadRequest* request,
                                               v1::ConfirmNodeDeadResponse*) {
  asked.push_back(absl::StrCat("confirm-dead ", request->node()));
  return ErrorWithInfo(grpc::StatusCode::FAILED_PRECONDITION, "it was heard from", "NODE_ALIVE");
}

grpc::Status FakeJobService::WatchJob(grpc::ServerContext* context,
                                      const v1::WatchJobRequest* request,
                                      grpc::ServerWriter<v1::WatchJobResponse>* writer) {
  WatchScript script;
  {
    absl::MutexLock lock(&mu_);
    watched.push_back(*request);
    script = Next(watches);
  }
  return script(context, *request, writer);
}

grpc::Status FakeJobService::ReadLogs(grpc::ServerContext*, const v1::ReadLogsRequest* request,
                                      grpc::ServerWriter<v1::ReadLogsResponse>* writer) {
  LogScript script;
  {
    absl::MutexLock lock(&mu_);
    read.push_back(*request);
    script = Next(logs);
  }
  return script(*request, writer);
}

grpc::Status FakeJobService::PlanJob(grpc::ServerContext*, const v1::PlanJobRequest*,
                                     v1::PlanJobResponse* response) {
  absl::MutexLock lock(&mu_);
  const grpc::Status failure = NextFailureLocked();
  if (failure.ok()) *response = plan;
  return failure;
}

grpc::Status FakeCheckpointService::ListCheckpoints(grpc::ServerContext*,
                                                    const v1::ListCheckpointsRequest*,
                                                    v1::ListCheckpointsResponse* response) {
  *response = list;
  return grpc::Status::OK;
}

grpc::Status FakeCheckpointService::GetCheckpoint(grpc::ServerContext*,
                                                  const v1::GetCheckpointRequest* request,
                                                  v1::GetCheckpointResponse* response) {
  response->mutable_checkpoint()->set_name(request->name());
  for (const auto& [name, bytes] : files) {
    v1::CheckpointFile& file = *response->add_files();
    file.set_name(name);
    file.set_size_bytes(static_cast<int64_t>(bytes.size()));
    file.set_crc32c(Crc32c(bytes));
  }
  return grpc::Status::OK;
}

grpc::Status FakeCheckpointService::DownloadCheckpoint(
    grpc::ServerContext*, const v1::DownloadCheckpointRequest* request,
    grpc::ServerWriter<v1::DownloadCheckpointResponse>* writer) {
  Mishap mishap{-1, Mishap::kBreak};
  {
    absl::MutexLock lock(&mu_);
    asked.push_back(absl::StrCat("download ", request->file(), "@", request->offset()));
    if (!mishaps.empty()) {
      mishap = mishaps.front();
      mishaps.pop_front();
    }
  }
  const std::string& bytes = files.at(request->file());
  const size_t chunk = request->chunk_bytes() > 0 ? request->chunk_bytes() : 256 << 10;
  int sent = 0;
  for (size_t at = static_cast<size_t>(request->offset()); at < bytes.size(); at += chunk) {
    v1::DownloadCheckpointResponse response;
    response.set_offset(static_cast<int64_t>(at));
    response.set_data(bytes.substr(at, chunk));
    response.set_crc32c(Crc32c(response.data()));
    if (sent++ == mishap.after_chunks) {
      if (mishap.what == Mishap::kEndEarly) return grpc::Status::OK;
      if (mishap.what == Mishap::kBreak) return {grpc::StatusCode::UNAVAILABLE, "gone"};
      (*response.mutable_data())[0] ^= 1;
    }
    writer->Write(response);
  }
  return grpc::Status::OK;
}

grpc::Status FakeCheckpointService::PinCheckpoint(grpc::ServerContext*,
                                                  const v1::PinCheckpointRequest* request,
                                                  v1::PinCheckpointResponse* response) {
  asked.push_back("pin " + request->name());
  response->mutable_checkpoint()->set_name(request->name());
  return grpc::Status::OK;
}

grpc::Status FakeCheckpointService::UnpinCheckpoint(grpc::ServerContext*,
                                                    const v1::UnpinCheckpointRequest* request,
                                                    v1::UnpinCheckpointResponse* response) {
  asked.push_back("unpin " + request->name());
  response->mutable_checkpoint()->set_name(request->name());
  return grpc::Status::OK;
}

grpc::Status FakeCheckpointService::DeleteCheckpoint(grpc::ServerContext*,
                                                     const v1::DeleteCheckpointRequest* request,
                                                     v1::DeleteCheckpointResponse*) {
  asked.push_back(absl::StrCat("delete ", request->name(), request->final() ? " final" : ""));
  return grpc::Status::OK;
}

}  // namespace switchyard
