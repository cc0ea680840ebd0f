// Why an attempt, or a rank of it, failed: the one list that coordinator, agent and trainer share.
// Values and names are those of switchyard.v1.FailureReason (a test of the agent compares them):
// here again because the trainer and the store link no protobuf.
#ifndef SWITCHYARD_BASE_FAILURE_REASON_H_
#define SWITCHYARD_BASE_FAILURE_REASON_H_

#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "absl/types/span.h"

namespace switchyard {

enum class FailureReason {
  kNone = 0,
  kConfigInvalid = 1,
  kDataInvalid = 2,
  kOomGpu = 3,
  kOomHost = 4,
  kTrainerExit = 5,
  kTrainerSignal = 6,
  kNanLoss = 7,
  kLossSpike = 8,
  kNcclError = 9,
  kHang = 10,
  kGpuXid = 11,
  kNodeLost = 12,
  kNodeReboot = 13,
  kPreempted = 14,
  kDrained = 15,
  kEngineCancelled = 16,
  kEngineRejected = 17,
  kDiskFull = 18,
  kStorageIo = 19,
  kCheckpointInvalid = 20,
  kDeadline = 21,
  kExitUnknown = 22,
  kInternal = 23,
};

// By value, kNone too.
absl::Span<const FailureReason> AllFailureReasons();

// "NAN_LOSS".
absl::string_view Name(FailureReason reason);
// None: a name that is not in the list.
absl::optional<FailureReason> ParseFailureReason(absl::string_view name);

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_FAILURE_REASON_H_
