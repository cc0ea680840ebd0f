// The reports of this agent that the coordinator has not acknowledged yet.
//
// Reports get consecutive numbers from 1 when they are added, and are handed out in that order
// until acknowledged, so that a coordinator that was away gets all of them, each once. Log bytes
// are not kept in memory: an entry names a piece of a log file, which is read again for every try.
#ifndef SWITCHYARD_WORKER_AGENT_REPORT_SPOOL_H_
#define SWITCHYARD_WORKER_AGENT_REPORT_SPOOL_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/ids.h"
#include "switchyard/v1/agent_link.pb.h"

namespace switchyard {

// One output stream of one process, kept in a file.
struct LogSource {
  AttemptId attempt;
  int rank = -1;       // -1: prep
  std::string stream;  // stdout, stderr
  std::string path;
};

// Thread-safe.
class ReportSpool {
 public:
  // Most log bytes in one report.
  static constexpr int64_t kMaxChunkBytes = 64 << 10;

  explicit ReportSpool(Clock& clock) : clock_(clock) {}

  // Numbers, dates and keeps `report` (its job, attempt and `what` are the caller's).
  void Add(const AttemptId& attempt, v1::Report report) ABSL_LOCKS_EXCLUDED(mu_);

  // Notes that bytes [offset, offset + size) of the stream are in its file. Calls for one source
  // come in order, without gaps. Bytes that follow those of a report not sent yet join it.
  void AddLog(const std::shared_ptr<const LogSource>& source, int64_t offset, int64_t size)
      ABSL_LOCKS_EXCLUDED(mu_);

  // The oldest unacknowledged reports, about `max_bytes` of them but at least one if there are any.
  // From then on these do not change any more.
  std::vector<v1::Report> NextBatch(int64_t max_bytes) ABSL_LOCKS_EXCLUDED(mu_);

  // Drops the reports up to `number`.
  void Acknowledge(int64_t number) ABSL_LOCKS_EXCLUDED(mu_);

  // Waits until there is something to send, at most `timeout`. False: nothing.
  bool WaitForReports(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until everything is acknowledged, at most `timeout`.
  bool WaitUntilEmpty(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);

  int64_t num_pending() const ABSL_LOCKS_EXCLUDED(mu_);
  // Unacknowledged reports of one attempt.
  int64_t num_pending(const AttemptId& attempt) const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    int64_t number = 0;
    absl::Time time;
    AttemptId attempt;
    v1::Report report;                        // when source is null
    std::shared_ptr<const LogSource> source;  // a piece of a log file
    int64_t offset = 0;
    int64_t size = 0;
  };
  Entry& AppendLocked(const AttemptId& attempt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasReportsLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !entries_.empty(); }
  bool IsEmptyLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_) { return entries_.empty(); }
  static v1::Report Materialize(const Entry& entry);

  Clock& clock_;
  mutable absl::Mutex mu_;
  std::deque<Entry> entries_ ABSL_GUARDED_BY(mu_);  // consecutive numbers
  int64_t last_number_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t last_handed_out_ ABSL_GUARDED_BY(mu_) = 0;
  // The report that further bytes of a source may join.
  absl::flat_hash_map<const LogSource*, int64_t> open_ ABSL_GUARDED_BY(mu_);
  std::map<AttemptId, int64_t> pending_by_attempt_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_REPORT_SPOOL_H_
