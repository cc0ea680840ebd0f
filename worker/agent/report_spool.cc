#include "worker/agent/report_spool.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/fd.h"
#include "base/log.h"
#include "worker/agent/record_file.h"

namespace switchyard {
namespace {

// Records: the kind, i64 sequence, then
//   kReport   i32 rank and i64 position of the frame it was made of, v1::Report
//   kLog      v1::Report with a LogChunk without data: a piece begins
//   kSeal     i64 size: the piece was handed out with so many bytes
//   kGap      v1::Report with a LogGap, in place of the piece
//   kAcked    all up to the sequence are acknowledged
enum Kind : char { kReport = 'R', kLog = 'L', kSeal = 'S', kGap = 'G', kAcked = 'A' };

std::string Record(Kind kind, int64_t sequence) {
  std::string record(1, kind);
  PutValue(sequence, record);
  return record;
}

// Whether the record is about one report, not about what has become of all before.
bool IsOfOneReport(const std::string& record) { return record[0] != kAcked; }

int64_t SequenceOf(const std::string& record) {
  absl::string_view rest = absl::string_view(record).substr(1);
  int64_t sequence = 0;
  TakeValue(rest, sequence);
  return sequence;
}

// Bytes [offset, offset + size) of a file that has them. Fewer when someone has damaged the file.
std::string ReadPiece(const std::string& path, int64_t offset, int64_t size) {
  std::string data(static_cast<size_t>(size), '\0');
  size_t done = 0;
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  while (fd.valid() && done < data.size()) {
    const ssize_t n = ::pread(fd.get(), data.data() + done, data.size() - done,
                              static_cast<off_t>(offset) + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  if (done < data.size()) {
    SY_LOG(ERROR) << "log bytes are lost: " << path << " was changed or removed, offset=" << offset
                  << " wanted=" << size << " read=" << done;
    data.resize(done);
  }
  return data;
}

// Gives the bytes from `begin` to the end of the piece back.
void Free(const LogPiece& piece, int64_t begin) {
  constexpr int64_t kKeepBytes = 64 << 10;
  if (piece.source->rank < 0) return;  // prep's output is read once more
  const UniqueFd fd(::open(piece.source->path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid()) return;
  const int64_t size = ::lseek(fd.get(), 0, SEEK_END);
  const int64_t end = std::min(piece.offset + piece.size, size - kKeepBytes);
  if (end <= begin) return;
  [[maybe_unused]] const int unused =
      ::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, begin, end - begin);
}

// What must not be lost even when the machine loses its power.
bool IsImportant(const v1::Report& report) {
  return report.has_finished() || report.has_rank_failed();
}

}  // namespace

void FreeUpTo(const LogPiece& piece) { Free(piece, 0); }
void FreePiece(const LogPiece& piece) { Free(piece, piece.offset); }

// ---- adding ----

void ReportSpool::SaveLocked(std::string record, bool sync) {
  if (storage_ == nullptr) return;
  const bool begins = record[0] == kReport || record[0] == kLog;
  unsaved_.push_back({begins ? last_ : last_ + 1, std::move(record), sync});
  while (!unsaved_.empty()) {
    const Unsaved& next = unsaved_.front();
    const absl::Status status = storage_->Append(next.sequence, next.record, next.sync);
    if (!status.ok()) {
      if (unsaved_.size() == 1) SY_LOG(ERROR) << "reports are kept in memory only: " << status;
      return;
    }
    unsaved_.pop_front();
  }
}

ReportSpool::Entry& ReportSpool::AppendLocked(const AttemptId& attempt, v1::Report report) {
  ++last_;
  const int64_t nanoseconds = absl::ToUnixNanos(clock_.Now());
  report.set_job(attempt.job.value());
  report.set_attempt(attempt.number);
  report.mutable_time()->set_seconds(nanoseconds / 1'000'000'000);
  report.mutable_time()->set_nanos(static_cast<int32_t>(nanoseconds % 1'000'000'000));
  Entry& entry = entries_.emplace_back();
  entry.attempt = attempt;
  entry.report = std::move(report);
  ++pending_by_attempt_[attempt];
  return entry;
}

void ReportSpool::Add(const AttemptId& attempt, v1::Report report, const FrameOrigin& origin) {
  MonitorLock lock(&mu_);
  Entry& entry = AppendLocked(attempt, std::move(report));
  entry.origin = origin;
  std::string record = Record(kReport, last_);
  PutValue(static_cast<int32_t>(origin.rank), record);
  PutValue(origin.position, record);
  SaveLocked(record + entry.report.SerializeAsString(), IsImportant(entry.report));
}

void ReportSpool::AddLog(const std::shared_ptr<const LogSource>& source, int64_t offset,
                         int64_t size) {
  MonitorLock lock(&mu_);
  while (size > 0) {
    Entry* entry = nullptr;
    const auto open = open_.find(source.get());
    if (open != open_.end() && open->second > last_handed_out_) {
      Entry& last = AtLocked(open->second);
      const bool follows =
          last.source != nullptr && last.report.log().offset() + last.size == offset;
      if (follows && last.size < kMaxChunkBytes) entry = &last;
    }
    if (entry == nullptr) {
      v1::Report report;
      report.mutable_log()->set_rank(source->rank);
      report.mutable_log()->set_stream(source->stream);
      report.mutable_log()->set_offset(offset);
      entry = &AppendLocked(source->attempt, std::move(report));
      entry->source = source;
      open_[source.get()] = last_;
      SaveLocked(Record(kLog, last_) + entry->report.SerializeAsString(), false);
    }
    const int64_t joined = std::min(size, kMaxChunkBytes - entry->size);
    entry->size += joined;
    offset += joined;
    size -= joined;
  }
}

// ---- sending ----

v1::Report ReportSpool::Materialize(const Entry& entry, int64_t number) {
  v1::Report report = entry.report;
  report.set_number(number);
  if (entry.source != nullptr) {
    report.mutable_log()->set_data(
        ReadPiece(entry.source->path, report.log().offset(), entry.size));
  }
  return report;
}

std::vector<v1::Report> ReportSpool::NextBatch(int64_t max_bytes) {
  std::vector<std::pair<int64_t, Entry>> chosen;
  {
    MonitorLock lock(&mu_);
    int64_t bytes = 0;
    int64_t sequence = FirstLocked();
    for (Entry& entry : entries_) {
      bytes += entry.size + static_cast<int64_t>(entry.report.ByteSizeLong()) + 128;
      if (!chosen.empty() && bytes > max_bytes) break;
      if (entry.source != nullptr && !entry.sealed) {
        entry.sealed = true;
        std::string record = Record(kSeal, sequence);
        PutValue(entry.size, record);
        SaveLocked(std::move(record), false);
      }
      chosen.emplace_back(sequence++ - base_, entry);
    }
    if (!chosen.empty()) last_handed_out_ = std::max(last_handed_out_, sequence - 1);
  }
  std::vector<v1::Report> reports;  // files are read outside the lock
  for (const auto& [number, entry] : chosen) reports.push_back(Materialize(entry, number));
  return reports;
}

void ReportSpool::PopLocked() {
  const Entry& entry = entries_.front();
  const auto pending = pending_by_attempt_.find(entry.attempt);
  if (--pending->second == 0) pending_by_attempt_.erase(pending);
  if (entry.source != nullptr) {
    const auto open = open_.find(entry.source.get());
    if (open != open_.end() && open->second == FirstLocked()) open_.erase(open);
  }
  entries_.pop_front();
}

std::vector<LogPiece> ReportSpool::Acknowledge(int64_t number) {
  std::vector<LogPiece> pieces;
  MonitorLock lock(&mu_);
  const int64_t sequence = number + base_;
  if (sequence < FirstLocked()) return pieces;
  while (!entries_.empty() && FirstLocked() <= sequence) {
    const Entry& entry = entries_.front();
    if (entry.source != nullptr) {
      pieces.push_back({entry.source, entry.report.log().offset(), entry.size});
    }
    PopLocked();
  }
  // What waits to be kept of these, and what was to be said of others before, need not be kept.
  std::erase_if(unsaved_, [sequence](const Unsaved& unsaved) {
    return !IsOfOneReport(unsaved.record) || SequenceOf(unsaved.record) <= sequence;
  });
  SaveLocked(Record(kAcked, FirstLocked() - 1), false);
  if (storage_ != nullptr && unsaved_.empty()) storage_->Release(FirstLocked());
  return pieces;
}

void ReportSpool::TurnIntoGap(Entry& entry) {
  v1::LogGap gap;
  gap.set_rank(entry.report.log().rank());
  gap.set_stream(entry.report.log().stream());
  gap.set_offset(entry.report.log().offset());
  gap.set_bytes(entry.size);
  *entry.report.mutable_log_gap() = gap;
  entry.source = nullptr;
  entry.size = 0;
}

std::vector<LogPiece> ReportSpool::DropOldestLogs(int64_t bytes) {
  std::vector<LogPiece> pieces;
  MonitorLock lock(&mu_);
  int64_t dropped = 0;
  int64_t sequence = FirstLocked();
  for (Entry& entry : entries_) {
    if (dropped >= bytes) break;
    if (sequence > last_handed_out_ && entry.source != nullptr) {
      pieces.push_back({entry.source, entry.report.log().offset(), entry.size});
      dropped += entry.size;
      const auto open = open_.find(entry.source.get());
      if (open != open_.end() && open->second == sequence) open_.erase(open);
      TurnIntoGap(entry);
      SaveLocked(Record(kGap, sequence) + entry.report.SerializeAsString(), false);
    }
    ++sequence;
  }
  dropped_log_bytes_ += dropped;
  return pieces;
}

int64_t ReportSpool::Rebase() {
  MonitorLock lock(&mu_);
  base_ = FirstLocked() - 1;
  return base_;
}

// ---- recovery ----

void ReportSpool::FillHoleLocked(int64_t next, const AttemptId& attempt) {
  const int64_t lost = next - last_ - 1;
  if (lost == 0) return;
  SY_LOG(ERROR) << "the spool is damaged: reports are lost count=" << lost
                << " first=" << last_ + 1;
  for (int64_t i = 0; i < lost; ++i) {
    v1::Report report;
    if (i == 0) {
      report.mutable_event()->set_kind("WARNING");
      report.mutable_event()->set_attempt(attempt.number);
      report.mutable_event()->set_message(
          absl::StrCat("the agent's spool was damaged: ", lost,
                       " reports (steps, events, log pieces) are lost"));
    } else {
      report.mutable_log()->set_rank(-1);  // of no bytes: it only takes its number
      report.mutable_log()->set_stream("stdout");
    }
    AppendLocked(attempt, std::move(report));
  }
}

RecoveredSpool ReportSpool::Recover(const FindLog& find_log) {
  RecoveredSpool recovered;
  if (storage_ == nullptr) return recovered;
  std::vector<std::string> records = storage_->Load();
  // A piece may be handed out before its stream's place is remembered.
  const auto note_end = [&recovered](const Entry& entry, int64_t value) {
    const v1::LogChunk& log = entry.report.log();
    int64_t& end = recovered.logs[{entry.attempt, log.rank(), log.stream()}];
    end = std::max(end, value);
  };
  MonitorLock lock(&mu_);
  bool first = true;
  for (const std::string& text : records) {
    absl::string_view rest = text;
    char kind = 0;
    int64_t sequence = 0;
    if (!TakeValue(rest, kind) || !TakeValue(rest, sequence)) continue;  // not ours
    if (kind == kReport || kind == kLog) {
      if (first) last_ = sequence - 1;
      first = false;
      if (sequence <= last_) continue;  // a piece of a segment that should be gone
      Entry entry;
      if (kind == kReport) {
        TakeValue(rest, entry.origin.rank);
        TakeValue(rest, entry.origin.position);
      }
      entry.report.ParseFromArray(rest.data(), static_cast<int>(rest.size()));
      entry.attempt = {JobId(entry.report.job()), entry.report.attempt()};
      FillHoleLocked(sequence, entry.attempt);
      ++last_;
      ++pending_by_attempt_[entry.attempt];
      if (entry.origin.rank >= 0) {
        int64_t& position = recovered.frames[{entry.attempt, entry.origin.rank}];
        position = std::max(position, entry.origin.position);
      }
      if (kind == kLog) {
        const LogPiece found =
            find_log(entry.attempt, entry.report.log().rank(), entry.report.log().stream());
        entry.source = found.source;
        entry.size = -1;  // until a seal, or what follows, tells
        int64_t& end =
            recovered.logs[{entry.attempt, entry.report.log().rank(), entry.report.log().stream()}];
        end = std::max({end, found.size, entry.report.log().offset()});
      }
      entries_.push_back(std::move(entry));
    } else if (kind == kAcked) {
      while (!entries_.empty() && FirstLocked() <= sequence) PopLocked();
      if (entries_.empty()) last_ = std::max(last_, sequence);  // some were never kept
    } else if (sequence >= FirstLocked() && sequence <= last_) {
      Entry& entry = AtLocked(sequence);
      if (kind == kSeal) {
        TakeValue(rest, entry.size);
        entry.sealed = true;
        last_handed_out_ = std::max(last_handed_out_, sequence);
        note_end(entry, entry.report.log().offset() + entry.size);
      } else if (kind == kGap) {
        entry.report.ParseFromArray(rest.data(), static_cast<int>(rest.size()));
        entry.source = nullptr;
        entry.size = 0;
        const v1::LogGap& gap = entry.report.log_gap();
        int64_t& end = recovered.logs[{entry.attempt, gap.rank(), gap.stream()}];
        end = std::max(end, gap.offset() + gap.bytes());
      }
    }
  }
  last_ = std::max(last_, base_);
  // From the newest to the oldest: a piece ends where the next of its stream begins.
  std::map<std::tuple<AttemptId, int, std::string>, int64_t> next = recovered.logs;
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
    if (entry->report.has_finished()) recovered.finished.insert(entry->attempt);
    if (entry->source == nullptr) continue;
    const v1::LogChunk& log = entry->report.log();
    int64_t& end = next[{entry->attempt, log.rank(), log.stream()}];
    if (entry->size < 0) entry->size = std::clamp<int64_t>(end - log.offset(), 0, kMaxChunkBytes);
    end = log.offset();
  }
  return recovered;
}

// ---- waiting and counting ----

bool ReportSpool::WaitForReports(absl::Duration timeout) {
  MonitorLock lock(&mu_);
  return mu_.AwaitWithTimeout(
      [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return HasReportsLocked(); }, timeout);
}

bool ReportSpool::WaitUntilEmpty(absl::Duration timeout) {
  MonitorLock lock(&mu_);
  return mu_.AwaitWithTimeout([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return IsEmptyLocked(); },
                              timeout);
}

ReportNumbers ReportSpool::numbers() const {
  MonitorLock lock(&mu_);
  return {FirstLocked() - base_, last_ + 1 - base_};
}

int64_t ReportSpool::num_pending() const {
  MonitorLock lock(&mu_);
  return static_cast<int64_t>(entries_.size());
}

int64_t ReportSpool::num_pending(const AttemptId& attempt) const {
  MonitorLock lock(&mu_);
  const auto it = pending_by_attempt_.find(attempt);
  return it == pending_by_attempt_.end() ? 0 : it->second;
}

bool ReportSpool::all_kept() const {
  MonitorLock lock(&mu_);
  return std::none_of(unsaved_.begin(), unsaved_.end(),
                      [](const Unsaved& unsaved) { return IsOfOneReport(unsaved.record); });
}

int64_t ReportSpool::dropped_log_bytes() const {
  MonitorLock lock(&mu_);
  return dropped_log_bytes_;
}

}  // namespace switchyard
