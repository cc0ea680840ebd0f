// Reads the files of published checkpoints for clients.
//
// Only what the manifest lists can be read, and only as a plain file inside the checkpoint's
// folder: names are resolved by the kernel (openat2) below the artifact root, without any link on
// the way.
#ifndef SWITCHYARD_SERVER_ARTIFACTS_CHECKPOINT_READER_H_
#define SWITCHYARD_SERVER_ARTIFACTS_CHECKPOINT_READER_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fd.h"
#include "server/records.h"

namespace switchyard {

struct CheckpointFileEntry {
  std::string name;  // relative to the checkpoint's folder
  int64_t size = 0;
  uint32_t crc32c = 0;
};

// Thread-safe; blocks on files. Errors of both: Unavailable ARTIFACTS_UNAVAILABLE: the artifact
// root cannot be read now; DataLoss CHECKPOINT_DAMAGED.
class CheckpointReader {
 public:
  explicit CheckpointReader(std::string artifact_root) : root_(std::move(artifact_root)) {}

  // The manifest's files and the manifest, by name.
  absl::StatusOr<std::vector<CheckpointFileEntry>> ListFiles(
      const CheckpointRecord& checkpoint) const;
  // For reading. Also refuses a file of another size, and one that has other names (hard links).
  absl::StatusOr<UniqueFd> Open(const CheckpointRecord& checkpoint,
                                const CheckpointFileEntry& file) const;

 private:
  const std::string root_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_ARTIFACTS_CHECKPOINT_READER_H_
