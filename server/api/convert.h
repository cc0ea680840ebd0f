// Protos <-> the coordinator's records, both ways. The one place that knows both.
#ifndef SWITCHYARD_SERVER_API_CONVERT_H_
#define SWITCHYARD_SERVER_API_CONVERT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/timestamp.pb.h"
#include "server/metrics/registry.h"
#include "server/records.h"
#include "switchyard/v1/admin_service.pb.h"
#include "switchyard/v1/agent_link.pb.h"
#include "switchyard/v1/job.pb.h"

namespace switchyard {

namespace v1 = ::switchyard::v1;

google::protobuf::Timestamp ToProto(absl::Time time);
absl::Time FromProto(const google::protobuf::Timestamp& time);
google::protobuf::Duration ToProto(absl::Duration duration);
absl::Duration FromProto(const google::protobuf::Duration& duration);

v1::Failure ToProto(const FailureRecord& failure);
FailureRecord FromProto(const v1::Failure& failure);
v1::Device ToProto(const DeviceRecord& device);
DeviceRecord FromProto(const v1::Device& device);
v1::AttemptRef ToProto(const AttemptId& id);
AttemptId FromProto(const v1::AttemptRef& ref);
v1::Job::State ToProto(JobState state);
JobState FromProto(v1::Job::State state);

v1::Attempt ToProto(const AttemptRecord& attempt);
v1::Node ToProto(const NodeRecord& node);  // without what the leases and placements know
v1::AuditRecord ToProto(const AuditRecord& record);
v1::Event ToProto(const EventRecord& event);
v1::Checkpoint ToProto(const CheckpointRecord& checkpoint);

struct CheckpointName {
  JobId job;
  int64_t step = 0;
};
// "projects/p/jobs/j/checkpoints/step-12". Errors: InvalidArgument CHECKPOINT_NAME_INVALID.
absl::StatusOr<CheckpointName> ParseCheckpointName(const std::string& name);

// Errors: Internal: the stored bytes do not parse.
absl::StatusOr<v1::StepMetrics> StepMetricsOf(const StepRecord& step);

// `latest`: the job's newest step (id 0: none); `last_checkpoint_step`: 0: none.
absl::StatusOr<v1::Job> ToProto(const JobRecord& job, const StepRecord& latest,
                                int64_t last_checkpoint_step,
                                const std::vector<ConditionRecord>& conditions);

JobNeeds NeedsOf(const v1::JobSpec& spec);
NodeRecord FromProto(const v1::RegisterRequest& request);

// Of a log chunk only that there was one: its bytes are written elsewhere.
// Errors: Unimplemented: a newer agent's kind of report.
absl::StatusOr<ReportRecord> FromProto(const v1::Report& report);

// `job_dir`: the folder of the job's artifacts. Errors: Internal: the stored spec does not parse.
absl::StatusOr<v1::SessionResponse> ToProto(const OrderRecord& order, const std::string& job_dir);

JobStats StatsOf(const JobRecord& job, const v1::StepMetrics& step);

// "projects/p" -> "p"; "projects/p/jobs/j" -> the id. Names are [a-z0-9-]{1,63}.
// Errors: InvalidArgument INVALID_NAME.
absl::StatusOr<std::string> ParseParent(absl::string_view parent);
absl::StatusOr<JobId> ParseJobName(absl::string_view name);
bool IsResourceId(absl::string_view id);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_CONVERT_H_
