// The reports of this agent that the coordinator has not acknowledged yet, kept through a death of
// the process.
//
// Reports get consecutive numbers when they are added, and are handed out in that order until
// acknowledged, so that a coordinator that was away gets all of them, each once. Log bytes are not
// kept here: an entry names a piece of a log file, which is read again for every try.
//
// Numbers count from 1 in each incarnation of the agent; in the storage they go on counting
// (sequence = number + base).
#ifndef SWITCHYARD_WORKER_AGENT_REPORT_SPOOL_H_
#define SWITCHYARD_WORKER_AGENT_REPORT_SPOOL_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/monitor.h"
#include "switchyard/v1/agent_link.pb.h"
#include "worker/agent/core.h"

namespace switchyard {

// One output stream of one process, kept in a file.
struct LogSource {
  AttemptId attempt;
  int rank = -1;       // -1: prep
  std::string stream;  // stdout, stderr
  std::string path;
};

// Bytes [offset, offset + size) of a log file.
struct LogPiece {
  std::shared_ptr<const LogSource> source;
  int64_t offset = 0;
  int64_t size = 0;
};

// Gives the disk space of a piece that is acknowledged, and of all before it in its file, back;
// where the file system can. The newest bytes stay, which failures quote.
void FreeUpTo(const LogPiece& piece);
// The same for a piece that was dropped.
void FreePiece(const LogPiece& piece);

// The frame that a report was made of: the byte of the rank's frame stream after it.
struct FrameOrigin {
  int rank = -1;  // -1: no frame
  int64_t position = 0;
};

// Where records survive the process. A file in production (spool_file.h).
class SpoolStorage {
 public:
  virtual ~SpoolStorage() = default;
  // All records kept, in order. Once, before anything else.
  virtual std::vector<std::string> Load() = 0;
  // `sequence`: of the report that begins with this record; of the next one to come for a record
  // that begins none. `sync`: on the disk when it returns; else a killed
  // process loses nothing, but a machine without power may.
  virtual absl::Status Append(int64_t sequence, const std::string& record, bool sync) = 0;
  // Records of reports before `sequence` are no longer needed.
  virtual void Release(int64_t sequence) = 0;
};

// What the spool of an earlier life says.
struct RecoveredSpool {
  // Up to where the frames of a rank have become reports.
  std::map<std::pair<AttemptId, int>, int64_t> frames;
  // Up to where a log stream is noted, at least: attempt, rank, stream.
  std::map<std::tuple<AttemptId, int, std::string>, int64_t> logs;
  // Attempts with a Finished report that is not acknowledged.
  std::set<AttemptId> finished;
};

// Thread-safe.
class ReportSpool {
 public:
  // Most log bytes in one report.
  static constexpr int64_t kMaxChunkBytes = 64 << 10;
  // A recovered log stream: its file, and how much of it was noted.
  using FindLog = std::function<LogPiece(const AttemptId&, int rank, const std::string& stream)>;

  // `storage` null: nothing survives. `base`: the sequence before this incarnation's number 1.
  explicit ReportSpool(Clock& clock, SpoolStorage* storage = nullptr, int64_t base = 0)
      : clock_(clock), storage_(storage), base_(base) {}

  // Takes up what an earlier life left. Once, before anything is added.
  RecoveredSpool Recover(const FindLog& find_log) ABSL_LOCKS_EXCLUDED(mu_);

  // Numbers, dates and keeps `report` (its job, attempt and `what` are the caller's).
  void Add(const AttemptId& attempt, v1::Report report, const FrameOrigin& origin = {})
      ABSL_LOCKS_EXCLUDED(mu_);

  // Notes that bytes [offset, offset + size) of the stream are in its file. Calls for one source
  // come in order. Bytes that follow those of a report not sent yet join it.
  void AddLog(const std::shared_ptr<const LogSource>& source, int64_t offset, int64_t size)
      ABSL_LOCKS_EXCLUDED(mu_);

  // The oldest unacknowledged reports, about `max_bytes` of them but at least one if there are any.
  // From then on these do not change any more.
  std::vector<v1::Report> NextBatch(int64_t max_bytes) ABSL_LOCKS_EXCLUDED(mu_);

  // Drops the reports up to `number`. Returns the log pieces among them.
  std::vector<LogPiece> Acknowledge(int64_t number) ABSL_LOCKS_EXCLUDED(mu_);

  // For a full disk: turns the oldest log pieces never handed out, together at least `bytes` if
  // there are so many, into LogGap reports. Returns the pieces, whose bytes may go.
  std::vector<LogPiece> DropOldestLogs(int64_t bytes) ABSL_LOCKS_EXCLUDED(mu_);

  // Lets the oldest unacknowledged report have number 1, for a new incarnation. Returns the base.
  int64_t Rebase() ABSL_LOCKS_EXCLUDED(mu_);

  // Waits until there is something to send, at most `timeout`. False: nothing.
  bool WaitForReports(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until everything is acknowledged, at most `timeout`.
  bool WaitUntilEmpty(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);

  ReportNumbers numbers() const ABSL_LOCKS_EXCLUDED(mu_);
  int64_t num_pending() const ABSL_LOCKS_EXCLUDED(mu_);
  // Whether a successor of this process would know every report that is not acknowledged: none
  // waits for space on the disk. Only then may what they were made of be given up.
  bool all_kept() const ABSL_LOCKS_EXCLUDED(mu_);
  // Unacknowledged reports of one attempt.
  int64_t num_pending(const AttemptId& attempt) const ABSL_LOCKS_EXCLUDED(mu_);
  // Log bytes dropped for want of space, by this process.
  int64_t dropped_log_bytes() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    AttemptId attempt;
    v1::Report report;  // without number; of a log piece: without data
    FrameOrigin origin;
    std::shared_ptr<const LogSource> source;  // of a log piece
    int64_t size = 0;                         // of a log piece
    bool sealed = false;                      // a log piece that was handed out
  };
  struct Unsaved {
    int64_t sequence = 0;
    std::string record;
    bool sync = false;
  };
  int64_t FirstLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return last_ - static_cast<int64_t>(entries_.size()) + 1;
  }
  Entry& AtLocked(int64_t sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return entries_[static_cast<size_t>(sequence - FirstLocked())];
  }
  Entry& AppendLocked(const AttemptId& attempt, v1::Report report)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SaveLocked(std::string record, bool sync) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Before the report `next`, of this attempt: others of those that are missing between it and the
  // last one, whose records a damaged segment has lost. One of them says so.
  void FillHoleLocked(int64_t next, const AttemptId& attempt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PopLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasReportsLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !entries_.empty(); }
  bool IsEmptyLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_) { return entries_.empty(); }
  static v1::Report Materialize(const Entry& entry, int64_t number);
  static void TurnIntoGap(Entry& entry);

  Clock& clock_;
  SpoolStorage* const storage_;
  mutable Monitor mu_;
  std::deque<Entry> entries_ ABSL_GUARDED_BY(mu_);  // consecutive sequences, the newest is last_
  int64_t base_ ABSL_GUARDED_BY(mu_);
  int64_t last_ ABSL_GUARDED_BY(mu_) = base_;
  int64_t last_handed_out_ ABSL_GUARDED_BY(mu_) = 0;
  // Records that the storage would not take, for want of space: tried again with the next.
  std::deque<Unsaved> unsaved_ ABSL_GUARDED_BY(mu_);
  // The report that further bytes of a source may join.
  absl::flat_hash_map<const LogSource*, int64_t> open_ ABSL_GUARDED_BY(mu_);
  std::map<AttemptId, int64_t> pending_by_attempt_ ABSL_GUARDED_BY(mu_);
  int64_t dropped_log_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_REPORT_SPOOL_H_
