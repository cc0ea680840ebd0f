#include "worker/agent/log_capture.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_split.h"
#include "base/json.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

constexpr size_t kTailBytes = 32 << 10;
constexpr size_t kMaxLineBytes = 1000;

// Protobuf strings must be UTF-8; JSON's writer knows how to repair them.
std::string ValidUtf8(absl::string_view text) {
  return Json::parse(DumpJson(Json(std::string(text)))).get<std::string>();
}

}  // namespace

std::vector<std::string> LastLines(absl::string_view text, int max_lines) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.remove_suffix(1);
  if (text.empty()) return {};
  std::vector<absl::string_view> lines = absl::StrSplit(text, '\n');
  if (lines.size() > static_cast<size_t>(max_lines))
    lines.erase(lines.begin(), lines.end() - max_lines);
  std::vector<std::string> result;
  for (absl::string_view line : lines) result.push_back(ValidUtf8(line.substr(0, kMaxLineBytes)));
  return result;
}

absl::StatusOr<std::unique_ptr<LogCapture>> LogCapture::Open(UniqueFd pipe, LogSource source,
                                                             ReportSpool& spool,
                                                             std::atomic<int64_t>* noted) {
  const std::string path = source.path;
  UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  if (!file.valid()) return ErrnoStatus("create", path, errno);
  const int64_t size = std::max<int64_t>(::lseek(file.get(), 0, SEEK_END), 0);
  // Behind what is reported already, though it may have gone by memory.
  const int64_t begin = std::max(size, noted->load());
  if (begin > size) ::lseek(file.get(), static_cast<off_t>(begin), SEEK_SET);
  std::unique_ptr<LogCapture> capture(
      new LogCapture(std::move(pipe), std::move(file), std::move(source), spool, begin, noted));
  if (noted->load() < size) {
    spool.AddLog(capture->source_, noted->load(), size - noted->load());
    noted->store(size);
  }
  return capture;
}

absl::StatusOr<std::string> LogCapture::ReadAll() const {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(source_->path));
  return text.substr(std::min(static_cast<size_t>(begin_), text.size()));
}

void LogCapture::Keep(absl::string_view data) {
  if (file_.valid()) {
    const absl::Status status = WriteAll(file_.get(), data, source_->path);
    if (status.ok()) {
      spool_.AddLog(source_, offset_, static_cast<int64_t>(data.size()));
    } else {
      SY_LOG(ERROR) << "logs are kept in memory from now on: " << status
                    << " job=" << source_->attempt.job << " rank=" << source_->rank;
      file_.Reset();
    }
  }
  if (!file_.valid()) {
    v1::Report report;
    report.mutable_log()->set_rank(source_->rank);
    report.mutable_log()->set_stream(source_->stream);
    report.mutable_log()->set_offset(offset_);
    report.mutable_log()->set_data(data.data(), data.size());
    spool_.Add(source_->attempt, std::move(report));
  }
  offset_ += static_cast<int64_t>(data.size());
  noted_->store(offset_);
  tail_.append(data.data(), data.size());
  if (tail_.size() > 2 * kTailBytes) tail_.erase(0, tail_.size() - kTailBytes);
}

void LogCapture::Drain(int64_t max_bytes) {
  char buffer[64 << 10];
  for (int64_t taken = 0; pipe_.valid() && taken < max_bytes;) {
    const ssize_t n = ::read(pipe_.get(), buffer, sizeof(buffer));
    if (n > 0) {
      Keep(absl::string_view(buffer, static_cast<size_t>(n)));
      taken += n;
    } else if (n == 0) {
      pipe_.Reset();
    } else if (errno == EAGAIN) {
      return;
    } else if (errno != EINTR) {
      SY_LOG(ERROR) << ErrnoStatus("read", source_->stream, errno) << " rank=" << source_->rank;
      pipe_.Reset();
    }
  }
}

}  // namespace switchyard
