// What an attempt writes for, and reads from, `switchyard-prep` and `switchyard-trainer`
// (docs/contracts.md), and where its files are.
#ifndef SWITCHYARD_WORKER_AGENT_JOB_FILES_H_
#define SWITCHYARD_WORKER_AGENT_JOB_FILES_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/ids.h"
#include "base/json.h"
#include "switchyard/v1/agent_link.pb.h"
#include "worker/agent/device_inventory.h"
#include "worker/link/messages.h"

namespace switchyard {

// "<state_dir>/attempts/<project>.<job>.<attempt>".
// Errors: InvalidArgument: the job is not named projects/{project}/jobs/{job}.
absl::StatusOr<std::string> AttemptFolder(const std::string& state_dir, const AttemptId& attempt);
std::string TokensFolder(const std::string& state_dir);
// The file that tells shims when to kill (worker/shim/attempt_files.h).
std::string LeasePath(const std::string& state_dir);
// The devices that foreign processes hold, for the next life of the agent.
std::string WithheldPath(const std::string& state_dir);

// Protobuf's JSON mapping with our names, enums by name, defaults printed, int64 as strings.
// Errors: InvalidArgument, for a message that has no JSON (not valid UTF-8).
absl::StatusOr<Json> SpecToJson(const v1::JobSpec& spec);

// What prep found, out of the last line of its stdout.
struct PrepResult {
  std::string folder;       // with train.tok and validation-<name>.tok
  std::string data_report;  // compact JSON
  int64_t train_rows = 0;
};
// Errors: InvalidArgument.
absl::StatusOr<PrepResult> ParsePrepOutput(absl::string_view text);

// Where a job's ranks meet.
struct Rendezvous {
  std::string address;
  int port = 0;
};

// The config frame of the local_rank-th trainer of this node. `device` is the one it gets;
// `num_cores` the node's.
ConfigFrame MakeConfigFrame(const v1::Assign& assign, const Json& spec, const PrepResult& prep,
                            const Rendezvous& rendezvous, int local_rank, const DeviceInfo& device,
                            int num_cores);

v1::StepMetrics ToStepMetrics(const StepFrame& frame);

// PHASE events' message of a plan: "planned memory of the fullest rank: 1.2 GB = weights ...".
std::string PlanMessage(const PlanFrame& plan);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_JOB_FILES_H_
