#include "server/store/writer.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/error.h"

namespace switchyard {
namespace {

constexpr size_t kMaxGroup = 64;
constexpr absl::Duration kFillInterval = absl::Seconds(2);

Failpoint before_commit("store.before_commit", FailpointKind::kFallible);
Failpoint after_commit("store.after_commit", FailpointKind::kEvent);

// As SQLite would report it: EIO is lost data, ENOSPC and ENOMEM are not.
absl::Status BeforeCommit() {
  const absl::Status status = before_commit.Check();
  return absl::IsUnavailable(status) ? absl::DataLossError(status.message()) : status;
}

void LogChanges(const ChangeSet& changes) {
  for (const JobChange& c : changes.job_changes) {
    SY_LOG(INFO) << "job " << (c.from ? "moved" : "created") << " job=" << c.job
                 << " attempt=" << c.attempt << " from=" << (c.from ? Name(*c.from) : "-")
                 << " to=" << Name(c.to) << (c.failure == FailureReason::kNone ? "" : " reason=")
                 << (c.failure == FailureReason::kNone ? "" : Name(c.failure));
  }
}

}  // namespace

Writer::Writer(std::unique_ptr<Database> db, const StoreOptions& options, Clock& clock)
    : options_(options),
      clock_(clock),
      db_(std::move(db)),
      ballast_(options.folder, options.ballast_bytes) {
  if (options_.statement_hook) {
    db_->statement_hook_arg = const_cast<StoreOptions*>(&options_);
    db_->statement_hook = [](void* arg, absl::string_view sql) {
      return static_cast<StoreOptions*>(arg)->statement_hook(sql);
    };
  }
  if (options_.inline_writes) return;
  thread_ = Thread("store-writer", [this](const StopToken& stop) { Loop(stop); });
}

Writer::~Writer() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.StopAndJoin();
  // Nothing commits any more, so this races nothing. A WAL that is left is read at the next start.
  const absl::Status status = db_->Checkpoint();
  if (!status.ok()) SY_LOG(WARNING) << "wal checkpoint failed error=" << status.message();
}

absl::Status Writer::Write(std::function<absl::Status(Transaction&)> body) {
  Request request{std::move(body), absl::OkStatus(), false};
  if (options_.inline_writes) {
    Serve({&request});
    return request.result;
  }
  absl::MutexLock lock(&mu_);
  if (stopping_) return absl::UnavailableError("the coordinator is stopping");
  queue_.push_back(&request);
  mu_.Await(absl::Condition(&request.done));
  return request.result;
}

void Writer::Subscribe(std::function<void(const ChangeSet&)> listener) {
  absl::MutexLock lock(&mu_);
  listeners_.push_back(std::move(listener));
}

void Writer::Loop(const StopToken&) {
  while (true) {
    std::deque<Request*> group;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &Writer::HasWork));
      if (queue_.empty()) return;  // stopping, and all that was accepted is done
      while (!queue_.empty() && group.size() < kMaxGroup) {
        group.push_back(queue_.front());
        queue_.pop_front();
      }
    }
    Serve(group);
    absl::MutexLock lock(&mu_);
    for (Request* request : group) request->done = true;
  }
}

void Writer::Serve(const std::deque<Request*>& group) {
  ChangeSet changes;
  const absl::Duration start = clock_.Monotonic();
  const absl::Status commit = RunGroup(group, changes);
  if (options_.on_commit_seconds) {
    options_.on_commit_seconds(absl::ToDoubleSeconds(clock_.Monotonic() - start));
  }
  if (commit.ok()) {
    LogChanges(changes);
    std::vector<std::function<void(const ChangeSet&)>> listeners;
    {
      absl::MutexLock lock(&mu_);
      listeners = listeners_;
    }
    for (const auto& listener : listeners) listener(changes);
    return;
  }
  for (Request* request : group) request->result = commit;
}

void Writer::StopForGood(const absl::Status& status) {
  SY_LOG(ERROR) << "storage failed, stopping error=" << status.message();
  if (!options_.on_fatal) ::_exit(70);
  options_.on_fatal(status);
}

void Writer::RegainSpace() {
  const absl::Duration now = clock_.Monotonic();
  if (now - filled_ < kFillInterval) return;
  filled_ = now;
  const bool full = !ballast_.Fill();
  if (full != low_space_) {
    SY_LOG(WARNING) << (full ? "the disk of the state folder is nearly full, no job is accepted"
                             : "the disk of the state folder has room again")
                    << " folder=" << options_.folder;
  }
  low_space_ = full;
}

absl::Status Writer::RunGroup(const std::deque<Request*>& group, ChangeSet& changes) {
  RETURN_IF_ERROR(fatal_);
  if (options_.ballast_bytes > 0 && (low_space_ || filled_ < absl::ZeroDuration())) RegainSpace();
  absl::Status status = db_->Execute("BEGIN IMMEDIATE");
  for (Request* request : group) {
    if (status.ok()) status = RunOne(*request, changes);
  }
  if (status.ok()) status = BeforeCommit();
  if (status.ok()) status = db_->Execute("COMMIT");
  if (status.ok()) {
    after_commit.Pass();
    return status;
  }
  if (absl::IsDataLoss(status)) {
    // Never retried in place: after a failed fsync the page cache no longer tells the truth.
    fatal_ = status;
    StopForGood(status);
    return status;
  }
  // A full disk may already have rolled the transaction back, so that this one fails; either way
  // none is open afterwards.
  db_->Execute("ROLLBACK").IgnoreError();
  if (absl::IsResourceExhausted(status)) {
    // Not tried again here: the callers do, and find the space that the ballast took.
    low_space_ = options_.ballast_bytes > 0;
    filled_ = clock_.Monotonic();
    const bool freed = ballast_.Free();
    SY_LOG(ERROR) << "the disk of the state folder is full, ballast freed=" << freed
                  << " folder=" << options_.folder;
    return MakeError(absl::StatusCode::kResourceExhausted, "STORAGE_READ_ONLY",
                     absl::StrCat("nothing was stored: ", status.message()));
  }
  return status;
}

// OK: the group goes on, whatever the request's own result is.
absl::Status Writer::RunOne(Request& request, ChangeSet& changes) {
  RETURN_IF_ERROR(db_->Execute("SAVEPOINT request"));
  Transaction tx{*db_, clock_.Now(), options_.retry_backoff, {}, low_space_};
  request.result = request.body(tx);
  if (!request.result.ok()) {
    if (absl::IsDataLoss(request.result) || absl::IsResourceExhausted(request.result)) {
      return request.result;
    }
    RETURN_IF_ERROR(db_->Execute("ROLLBACK TO request"));
    return db_->Execute("RELEASE request");
  }
  RETURN_IF_ERROR(db_->Execute("RELEASE request"));
  changes.Merge(std::move(tx.changes));
  return absl::OkStatus();
}

}  // namespace switchyard
