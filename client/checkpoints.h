// The verbs of `switchyard checkpoints`, and how people name a checkpoint.
#ifndef SWITCHYARD_CLIENT_CHECKPOINTS_H_
#define SWITCHYARD_CLIENT_CHECKPOINTS_H_

#include <string>

#include "absl/status/statusor.h"
#include "client/commands.h"

namespace switchyard {

// A folder has a slash, or is "." or "..": ./step-6, /data/model. Anything else is a job's
// checkpoint: JOB (its newest), JOB@STEP, or the resource name of either.
bool NamesFolder(const std::string& checkpoint);

// The resource name "projects/p/jobs/j/checkpoints/step-6"; asks the coordinator for the newest
// step when none is said. Errors: InvalidArgument; NotFound: the job has none; as the call.
absl::StatusOr<std::string> FindCheckpoint(CommandContext& context, const std::string& checkpoint);

// Its folder on this machine. Errors: also FailedPrecondition: it is only on the coordinator's.
absl::StatusOr<std::string> LocalFolder(CommandContext& context, const std::string& checkpoint);

// As CommandContext::Fail, but without advice about the server when the fault is on this machine.
int FailCheckpoint(const CommandContext& context, const absl::Status& status,
                   const std::string& doing);

// Each returns the exit code. 7: damaged; 8: they differ.
int RunDownload(CommandContext& context);  // checkpoint_download.cc
int RunVerify(CommandContext& context);    // checkpoint_verify.cc
int RunExport(CommandContext& context);    // checkpoint_export.cc
int RunDiff(CommandContext& context);      // checkpoint_diff.cc

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_CHECKPOINTS_H_
