#include "worker/agent/report_spool.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/fd.h"
#include "base/log.h"

namespace switchyard {
namespace {

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

}  // namespace

ReportSpool::Entry& ReportSpool::AppendLocked(const AttemptId& attempt) {
  Entry& entry = entries_.emplace_back();
  entry.number = ++last_number_;
  entry.time = clock_.Now();
  entry.attempt = attempt;
  ++pending_by_attempt_[attempt];
  return entry;
}

void ReportSpool::Add(const AttemptId& attempt, v1::Report report) {
  absl::MutexLock lock(&mu_);
  AppendLocked(attempt).report = std::move(report);
}

void ReportSpool::AddLog(const std::shared_ptr<const LogSource>& source, int64_t offset,
                         int64_t size) {
  absl::MutexLock lock(&mu_);
  while (size > 0) {
    Entry* entry = nullptr;
    const auto open = open_.find(source.get());
    if (open != open_.end() && open->second > last_handed_out_) {
      Entry& last = entries_[static_cast<size_t>(open->second - entries_.front().number)];
      if (last.size < kMaxChunkBytes) entry = &last;
    }
    if (entry == nullptr) {
      entry = &AppendLocked(source->attempt);
      entry->source = source;
      entry->offset = offset;
      open_[source.get()] = entry->number;
    }
    const int64_t joined = std::min(size, kMaxChunkBytes - entry->size);
    entry->size += joined;
    offset += joined;
    size -= joined;
  }
}

v1::Report ReportSpool::Materialize(const Entry& entry) {
  v1::Report report = entry.report;
  report.set_number(entry.number);
  report.set_job(entry.attempt.job.value());
  report.set_attempt(entry.attempt.number);
  const int64_t nanoseconds = absl::ToUnixNanos(entry.time);
  report.mutable_time()->set_seconds(nanoseconds / 1'000'000'000);
  report.mutable_time()->set_nanos(static_cast<int32_t>(nanoseconds % 1'000'000'000));
  if (entry.source != nullptr) {
    v1::LogChunk* log = report.mutable_log();
    log->set_rank(entry.source->rank);
    log->set_stream(entry.source->stream);
    log->set_offset(entry.offset);
    log->set_data(ReadPiece(entry.source->path, entry.offset, entry.size));
  }
  return report;
}

std::vector<v1::Report> ReportSpool::NextBatch(int64_t max_bytes) {
  std::vector<Entry> chosen;
  {
    absl::MutexLock lock(&mu_);
    int64_t bytes = 0;
    for (const Entry& entry : entries_) {
      bytes += entry.size + static_cast<int64_t>(entry.report.ByteSizeLong()) + 128;
      if (!chosen.empty() && bytes > max_bytes) break;
      chosen.push_back(entry);
    }
    if (!chosen.empty()) last_handed_out_ = std::max(last_handed_out_, chosen.back().number);
  }
  std::vector<v1::Report> reports;  // files are read outside the lock
  for (const Entry& entry : chosen) reports.push_back(Materialize(entry));
  return reports;
}

void ReportSpool::Acknowledge(int64_t number) {
  absl::MutexLock lock(&mu_);
  while (!entries_.empty() && entries_.front().number <= number) {
    const Entry& entry = entries_.front();
    const auto pending = pending_by_attempt_.find(entry.attempt);
    if (--pending->second == 0) pending_by_attempt_.erase(pending);
    if (entry.source != nullptr) {
      const auto open = open_.find(entry.source.get());
      if (open != open_.end() && open->second == entry.number) open_.erase(open);
    }
    entries_.pop_front();
  }
}

bool ReportSpool::WaitForReports(absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(this, &ReportSpool::HasReportsLocked), timeout);
}

bool ReportSpool::WaitUntilEmpty(absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(this, &ReportSpool::IsEmptyLocked), timeout);
}

int64_t ReportSpool::num_pending() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int64_t>(entries_.size());
}

int64_t ReportSpool::num_pending(const AttemptId& attempt) const {
  absl::MutexLock lock(&mu_);
  const auto it = pending_by_attempt_.find(attempt);
  return it == pending_by_attempt_.end() ? 0 : it->second;
}

}  // namespace switchyard
