// File work that a gang shares: positioned reads, agreeing on success, checksums.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_GANG_IO_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_GANG_IO_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/fd.h"
#include "worker/trainer/parallel/comm.h"

namespace switchyard {

// The files of a folder, opened when first needed. One thread.
class OpenFiles {
 public:
  OpenFiles(std::string folder, std::vector<std::string> names);

  // Opens a file that ReadAt would open. Then several threads may read it.
  absl::Status Open(int file);
  // All bytes or an error, through EINTR and short transfers. DataLoss: the file ends too early.
  absl::Status ReadAt(int file, uint64_t offset, void* data, size_t bytes);

 private:
  std::string folder_;
  std::vector<std::string> names_;
  std::vector<UniqueFd> fds_;
};

// Collective. Returns when all ranks' `mine` are OK; else throws StatusError on all: `mine` where
// it is an error, elsewhere Aborted "<what>: another rank failed". So no rank waits for one that
// gave up.
void AgreeOk(Comm& world, const absl::Status& mine, absl::string_view what);

// Collective. All ranks' numbers, in rank order; each may bring any number of them.
std::vector<int64_t> GatherNumbers(Comm& world, const std::vector<int64_t>& mine);

// Collective. The crc32c of each file, read once by one of the ranks. Throws as AgreeOk.
std::vector<uint32_t> GangCrc32c(Comm& world, const std::string& folder,
                                 const std::vector<std::string>& names);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_GANG_IO_H_
