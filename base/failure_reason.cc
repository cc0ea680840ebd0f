#include "base/failure_reason.h"

#include <iterator>

namespace switchyard {
namespace {

struct Entry {
  FailureReason reason;
  const char* name;
};
using R = FailureReason;
constexpr Entry kEntries[] = {
    {R::kNone, "FAILURE_REASON_UNSPECIFIED"},
    {R::kConfigInvalid, "CONFIG_INVALID"},
    {R::kDataInvalid, "DATA_INVALID"},
    {R::kOomGpu, "OOM_GPU"},
    {R::kOomHost, "OOM_HOST"},
    {R::kTrainerExit, "TRAINER_EXIT"},
    {R::kTrainerSignal, "TRAINER_SIGNAL"},
    {R::kNanLoss, "NAN_LOSS"},
    {R::kLossSpike, "LOSS_SPIKE"},
    {R::kNcclError, "NCCL_ERROR"},
    {R::kHang, "HANG"},
    {R::kGpuXid, "GPU_XID"},
    {R::kNodeLost, "NODE_LOST"},
    {R::kNodeReboot, "NODE_REBOOT"},
    {R::kPreempted, "PREEMPTED"},
    {R::kDrained, "DRAINED"},
    {R::kEngineCancelled, "ENGINE_CANCELLED"},
    {R::kEngineRejected, "ENGINE_REJECTED"},
    {R::kDiskFull, "DISK_FULL"},
    {R::kStorageIo, "STORAGE_IO"},
    {R::kCheckpointInvalid, "CHECKPOINT_INVALID"},
    {R::kDeadline, "DEADLINE"},
    {R::kExitUnknown, "EXIT_UNKNOWN"},
    {R::kInternal, "INTERNAL"},
};
constexpr size_t kCount = std::size(kEntries);

struct Values {
  FailureReason at[kCount];
};
constexpr Values MakeValues() {
  Values values{};
  for (size_t i = 0; i < kCount; ++i) values.at[i] = kEntries[i].reason;
  return values;
}
constexpr Values kValues = MakeValues();

constexpr bool AreInOrder() {
  for (size_t i = 0; i < kCount; ++i) {
    if (static_cast<size_t>(kEntries[i].reason) != i) return false;
  }
  return true;
}
static_assert(AreInOrder());

}  // namespace

absl::Span<const FailureReason> AllFailureReasons() { return kValues.at; }

absl::string_view Name(FailureReason reason) { return kEntries[static_cast<size_t>(reason)].name; }

absl::optional<FailureReason> ParseFailureReason(absl::string_view name) {
  for (const Entry& entry : kEntries) {
    if (name == entry.name) return entry.reason;
  }
  return absl::nullopt;
}

}  // namespace switchyard
