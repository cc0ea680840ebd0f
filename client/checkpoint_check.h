// Whether a checkpoint is what it should be: every byte as the manifest says, every safetensors
// file well formed, the index complete, and every tensor of the model there exactly once.
#ifndef SWITCHYARD_CLIENT_CHECKPOINT_CHECK_H_
#define SWITCHYARD_CLIENT_CHECKPOINT_CHECK_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// Where the files are: a folder here, or behind a coordinator.
class CheckpointSource {
 public:
  virtual ~CheckpointSource() = default;
  // Relative names of all files, ascending.
  virtual absl::StatusOr<std::vector<std::string>> ListFiles() = 0;
  // The file's bytes in order. DataLoss is a fault of the file; other errors end the check.
  virtual absl::Status Scan(const std::string& name,
                            absl::FunctionRef<absl::Status(absl::string_view)> sink) = 0;
};

struct CheckpointFault {
  std::string file;    // relative
  std::string reason;  // with the numbers; lists of tensors stop at three
};
struct CheckpointReport {
  std::vector<CheckpointFault> faults;  // none: it is whole
  std::vector<std::string> notes;       // what could not be checked, and why
  int64_t step = -1;                    // -1: no manifest
  int64_t files = 0;
  int64_t bytes = 0;
  int64_t tensors = 0;  // of the model
};

// Reads every file once, and keeps of it only what it needs: headers, JSON. A folder without
// `switchyard/` is taken for a model that is not of ours: its sums cannot be checked, the rest can.
// Errors: of the source, except DataLoss.
absl::StatusOr<CheckpointReport> CheckCheckpoint(CheckpointSource& source);

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_CHECKPOINT_CHECK_H_
