// The one thread that writes. Requests that wait together are committed together. With
// StoreOptions::inline_writes there is no thread, and a request is its own group.
#ifndef SWITCHYARD_SERVER_STORE_WRITER_H_
#define SWITCHYARD_SERVER_STORE_WRITER_H_

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/thread.h"
#include "server/store/state_folder.h"
#include "server/store/transaction.h"

namespace switchyard {

class Writer {
 public:
  Writer(std::unique_ptr<Database> db, const StoreOptions& options, Clock& clock);
  ~Writer();

  // Blocks until the commit. A failing body is rolled back alone; the others of its group stand.
  absl::Status Write(std::function<absl::Status(Transaction&)> body) ABSL_LOCKS_EXCLUDED(mu_);
  void Subscribe(std::function<void(const ChangeSet&)> listener) ABSL_LOCKS_EXCLUDED(mu_);
  // An I/O error or damage, of a write or a read: StoreOptions::on_fatal, or exit with 70.
  void StopForGood(const absl::Status& status);

 private:
  struct Request {
    std::function<absl::Status(Transaction&)> body;
    absl::Status result;
    bool done = false;
  };
  void Loop(const StopToken& stop) ABSL_LOCKS_EXCLUDED(mu_);
  // Commits the group, tells the listener, and sets the results (not `done`).
  void Serve(const std::deque<Request*>& group) ABSL_LOCKS_EXCLUDED(mu_);
  // Fills the ballast again once there is room.
  void RegainSpace();
  absl::Status RunGroup(const std::deque<Request*>& group, ChangeSet& changes);
  absl::Status RunOne(Request& request, ChangeSet& changes);
  bool HasWork() const ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || !queue_.empty(); }

  const StoreOptions& options_;
  Clock& clock_;
  std::unique_ptr<Database> db_;  // the writer thread's, as the next four
  Ballast ballast_;
  bool low_space_ = false;
  absl::Duration filled_ = -absl::InfiniteDuration();  // when filling was tried last
  absl::Status fatal_;  // the writer thread's; storage that failed is not used again

  absl::Mutex mu_;
  std::deque<Request*> queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::function<void(const ChangeSet&)>> listeners_ ABSL_GUARDED_BY(mu_);

  Thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_WRITER_H_
