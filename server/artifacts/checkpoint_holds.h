// Which checkpoints are being downloaded, so that nobody removes their files.
//
// A download is many calls, with pauses between them: a hold lasts a while beyond the last one.
// Holds are not stored: after a restart of the coordinator a client that goes on takes them again,
// and one that comes too late is told that the checkpoint was deleted. Who must be sure pins it.
#ifndef SWITCHYARD_SERVER_ARTIFACTS_CHECKPOINT_HOLDS_H_
#define SWITCHYARD_SERVER_ARTIFACTS_CHECKPOINT_HOLDS_H_

#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/ids.h"

namespace switchyard {

// Thread-safe.
class CheckpointHolds {
 public:
  static constexpr absl::Duration kLinger = absl::Minutes(2);

  explicit CheckpointHolds(Clock& clock) : clock_(clock) {}

  // Ends with its destructor. Not beyond the CheckpointHolds.
  class Hold {
   public:
    Hold() = default;
    Hold(CheckpointHolds& holds, const JobId& job, std::string folder);
    ~Hold();
    Hold(Hold&& other) noexcept
        : holds_(std::exchange(other.holds_, nullptr)), folder_(std::move(other.folder_)) {}
    Hold& operator=(Hold&& other) noexcept {
      std::swap(holds_, other.holds_);
      std::swap(folder_, other.folder_);
      return *this;
    }

   private:
    CheckpointHolds* holds_ = nullptr;
    std::string folder_;
  };

  bool IsHeld(const std::string& folder) ABSL_LOCKS_EXCLUDED(mu_);
  // The jobs of those that are not held any more, since the last call: what retention has spared
  // may go now.
  std::set<JobId> TakeReleased() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    JobId job;
    int count = 0;         // of Holds
    absl::Duration until;  // without any

    bool IsHeld(absl::Duration now) const { return count > 0 || until > now; }
  };
  Clock& clock_;
  absl::Mutex mu_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_ARTIFACTS_CHECKPOINT_HOLDS_H_
