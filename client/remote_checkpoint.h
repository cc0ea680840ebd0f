// Reads files of a checkpoint through the coordinator, over broken connections and restarts.
#ifndef SWITCHYARD_CLIENT_REMOTE_CHECKPOINT_H_
#define SWITCHYARD_CLIENT_REMOTE_CHECKPOINT_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/thread.h"
#include "client/connection.h"

namespace switchyard {

struct RemoteFile {
  std::string name;  // relative; inside the checkpoint's folder
  int64_t size = 0;
  uint32_t crc32c = 0;
};

struct RemoteOptions {
  int chunk_bytes = 0;  // 0: the server's choice
  // Without a single byte for so long a read fails; until then it is tried again.
  absl::Duration patience = absl::Minutes(2);
  // A stream that says nothing for so long is cut and begun again: a dead peer sends no error.
  absl::Duration silence = absl::Seconds(30);
};

// Thread-safe: several files may be read at the same time. `connection` and `terminal` outlive it.
class RemoteCheckpoint {
 public:
  // Errors: as the call; DataLoss: names that leave the folder.
  static absl::StatusOr<std::unique_ptr<RemoteCheckpoint>> Open(Connection& connection,
                                                                const Terminal& terminal,
                                                                const std::string& name,
                                                                const RemoteOptions& options);
  ~RemoteCheckpoint() { watcher_.StopAndJoin(); }

  const std::string& name() const { return name_; }
  const std::vector<RemoteFile>& files() const { return files_; }  // by name

  // Gives the file's bytes from `offset` to its end to `sink`, in order, each chunk after its
  // checksum was compared. Errors: those of `sink`; Unavailable: patience is at its end; Cancelled:
  // Ctrl-C; DataLoss: the server finds the file damaged; Aborted: the step was committed anew.
  absl::Status Read(const RemoteFile& file, int64_t offset,
                    absl::FunctionRef<absl::Status(absl::string_view)> sink);

 private:
  struct Stream {
    std::atomic<int64_t> messages{0};
    int64_t seen = -1;        // the watcher's
    absl::Time last_message;  // the watcher's
  };
  RemoteCheckpoint(Connection& connection, const Terminal& terminal, const std::string& name,
                   const RemoteOptions& options);
  // One stream. `offset` moves with what was taken.
  absl::Status ReadOnce(const RemoteFile& file, int64_t& offset,
                        absl::FunctionRef<absl::Status(absl::string_view)> sink,
                        absl::Status& sink_status);
  void Watch(const StopToken& stop) ABSL_LOCKS_EXCLUDED(mu_);

  Connection& connection_;
  const Terminal& terminal_;
  const std::string name_;
  const RemoteOptions options_;
  std::vector<RemoteFile> files_;
  uint32_t manifest_crc32c_ = 0;
  absl::Mutex mu_;
  std::map<grpc::ClientContext*, Stream*> streams_ ABSL_GUARDED_BY(mu_);
  Thread watcher_;  // last
};

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_REMOTE_CHECKPOINT_H_
