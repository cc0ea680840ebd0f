// The streams of JobService.
#ifndef SWITCHYARD_SERVER_API_JOB_STREAMS_H_
#define SWITCHYARD_SERVER_API_JOB_STREAMS_H_

#include "grpcpp/grpcpp.h"
#include "server/api/context.h"
#include "switchyard/v1/job_service.pb.h"

namespace switchyard {

// Replays events and steps from a position, then follows, until the job is final and all is sent.
// Both are merged in the order in which they were stored. `job` of an event is the job as stored
// when the event is sent: in a replay that is newer than the event.
grpc::ServerWriteReactor<v1::WatchJobResponse>* StartWatch(const ServiceContext& context,
                                                           grpc::CallbackServerContext* call,
                                                           const v1::WatchJobRequest& request);

// Log bytes of one attempt, file by file; with `follow` until the job is final, through later
// attempts when the request names none.
grpc::ServerWriteReactor<v1::ReadLogsResponse>* StartReadLogs(const ServiceContext& context,
                                                              grpc::CallbackServerContext* call,
                                                              const v1::ReadLogsRequest& request);

// The job with its progress, as the API shows it.
absl::StatusOr<v1::Job> ShowJob(Store& store, const JobRecord& job);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_JOB_STREAMS_H_
