// Publishes checkpoints: verified, renamed to their final place, recorded (service.md 2.6); and
// removes them. Files and rows move in an order that a crash at any point can be finished from: a
// row says COMMITTING before files come to their place, and DELETING before they leave it.
//
//   <job>/staging/<attempt>/step-<n> -> <job>/checkpoints/step-<n> -> <job>/deleting/step-<n>
#ifndef SWITCHYARD_SERVER_ARTIFACTS_PUBLISHER_H_
#define SWITCHYARD_SERVER_ARTIFACTS_PUBLISHER_H_

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/artifacts/checkpoint_holds.h"
#include "server/artifacts/checksum_checker.h"
#include "server/store/store.h"

namespace switchyard {

// <root>/<project>/<job>: everything a job leaves behind.
std::string JobFolder(const std::string& artifact_root, const JobId& job);

struct CommitRequest {
  NodeId node;
  Incarnation incarnation;
  CheckpointRecord checkpoint;  // job, attempt, step, staging_path, crc, final, losses
};

// Thread-safe; blocks on files.
class Publisher {
 public:
  // `verify_checksums`: before a checkpoint is published, also read every byte and compare with the
  // manifest's crc32c. With a `checker`, which outlives this, they are compared before a checkpoint
  // is resumed from, on its thread; without one, as before a publication. What `holds` holds is not
  // removed; it outlives this too.
  Publisher(Store& store, std::string artifact_root, bool verify_checksums,
            ChecksumChecker* checker = nullptr, CheckpointHolds* holds = nullptr)
      : store_(store),
        root_(std::move(artifact_root)),
        verify_checksums_(verify_checksums),
        checker_(checker),
        holds_(holds) {}

  // Idempotent: the same request again answers the same checkpoint, also when the first one is
  // still being carried out (an agent whose connection broke asks again): then it waits for its
  // end. Errors: Aborted STALE_ATTEMPT, STALE_INCARNATION; InvalidArgument CHECKPOINT_REJECTED:
  // what does not fit, with the file and both numbers.
  absl::StatusOr<CheckpointRecord> Commit(const CommitRequest& request) ABSL_LOCKS_EXCLUDED(mu_);

  // Finishes or drops the publications that a crash left half-way. At start.
  absl::Status Recover();

  // Applies the job's retention rule: what it lets go is DELETING; RemoveDeleted does the rest.
  absl::Status Retire(const JobId& job);
  // The same of one checkpoint that a user wants gone. Errors: as Store::BeginDeletion.
  absl::Status Delete(const JobId& job, int64_t step, const DeletionRequest& request);
  // Removes the files of all that is DELETING. What is held, or cannot be removed now, waits for
  // the next call. Errors: of the first that could not be removed.
  absl::Status RemoveDeleted() ABSL_LOCKS_EXCLUDED(mu_);

  // The attempts that have a staging folder, whether the database knows them or not. Reads one
  // folder per job. Errors: Unavailable.
  absl::StatusOr<std::vector<AttemptId>> ListStaged();
  // Removes what an attempt has left in its staging folder. Errors: NotFound: no such attempt (the
  // database was restored, and it may run); FailedPrecondition: it is not over; Unavailable: later.
  absl::Status RemoveStaged(const AttemptId& attempt);

  // The newest committed checkpoint whose files still verify; empty: none, or the job's checkpoints
  // lack the optimizer's state, so that a new attempt starts from the beginning. One that does not
  // verify is rejected for good, so that its step can be committed again.
  // Errors, for people: Unavailable when the artifacts cannot be read now (they may be there all
  // the same), or when their checksums are not known yet: to be asked again.
  absl::StatusOr<std::string> ResumePath(const JobRecord& job);

 private:
  using Place = std::pair<JobId, int64_t>;  // job, step
  // The right to move files to a place; held by one call at a time.
  class Claim;

  absl::Status Publish(const CheckpointRecord& checkpoint);
  absl::StatusOr<int64_t> Verify(const std::string& folder, const CheckpointRecord& checkpoint);
  // As Verify, but for the checksums: adds to `sums` what the manifest says of them.
  absl::StatusOr<int64_t> Inspect(const std::string& folder, const CheckpointRecord& checkpoint,
                                  std::vector<FileSum>& sums);
  // Whether it can be resumed from; none: its checksums are being read.
  absl::optional<absl::Status> IsWhole(const CheckpointRecord& checkpoint);
  absl::Status RemoveFiles(const CheckpointRecord& checkpoint);
  IsHeld HeldBy() const;

  Store& store_;
  const std::string root_;
  const bool verify_checksums_;
  ChecksumChecker* const checker_;
  CheckpointHolds* const holds_;
  absl::Mutex mu_;
  std::set<Place> claimed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_ARTIFACTS_PUBLISHER_H_
