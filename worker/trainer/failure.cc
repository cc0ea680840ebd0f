#include "worker/trainer/failure.h"

#include <c10/util/Exception.h>

#include <new>

#include "absl/strings/match.h"
#include "worker/trainer/parallel/comm_error.h"

namespace switchyard {
namespace {

// CUDA's numbers (driver_types.h; a build without CUDA has no header) for faults of the device or
// its links, which another node may not have. An illegal address is not among them: that is our
// bug.
bool IsHardwareFault(int32_t cuda_error) {
  switch (cuda_error) {
    case 46:   // cudaErrorDevicesUnavailable
    case 214:  // cudaErrorECCUncorrectable
    case 220:  // cudaErrorNvlinkUncorrectable
    case 226:  // cudaErrorContained
    case 714:  // cudaErrorHardwareStackError
    case 719:  // cudaErrorLaunchFailure: what a device that fell off the bus gives
    case 721:  // cudaErrorTensorMemoryLeak
    case 802:  // cudaErrorSystemNotReady
    case 911:  // cudaErrorExternalDevice
      return true;
    default:
      return false;
  }
}

}  // namespace

FailureReason ReasonOf(const absl::Status& status, FailureReason usual) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return FailureReason::kDiskFull;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kPermissionDenied:
      return FailureReason::kStorageIo;
    default:
      return usual;
  }
}

ErrorFrame DescribeFailure(const std::exception& error) {
  ErrorFrame frame;
  frame.reason = FailureReason::kInternal;
  frame.message = error.what();
  if (const auto* train = dynamic_cast<const TrainError*>(&error)) {
    frame.reason = train->reason();
  } else if (dynamic_cast<const CommError*>(&error) != nullptr) {
    frame.reason = FailureReason::kNcclError;
  } else if (const auto* status = dynamic_cast<const StatusError*>(&error)) {
    frame.reason = ReasonOf(status->status(), FailureReason::kInternal);
  } else if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) {
    frame.reason = FailureReason::kOomHost;
    frame.message = "out of host memory";
  } else if (const auto* torch = dynamic_cast<const c10::Error*>(&error)) {
    frame.message = torch->what_without_backtrace();
    if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) {
      frame.reason = FailureReason::kOomGpu;
    } else if (absl::StrContains(frame.message, "DefaultCPUAllocator")) {
      frame.reason = FailureReason::kOomHost;  // torch has no type for it
    } else if (const auto* device = dynamic_cast<const c10::AcceleratorError*>(&error)) {
      if (IsHardwareFault(device->get_error_code())) frame.reason = FailureReason::kGpuXid;
    }
  }
  return frame;
}

}  // namespace switchyard
