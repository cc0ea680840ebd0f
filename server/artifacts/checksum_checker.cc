#include "server/artifacts/checksum_checker.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_format.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

// How long the thread takes to see that it should stop.
constexpr absl::Duration kTick = absl::Milliseconds(100);

absl::StatusOr<uint32_t> FileCrc32c(const std::string& path, const std::function<bool()>& stop) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return ErrnoStatus("open", path, errno);
  std::vector<char> buffer(1 << 20);
  uint32_t crc = 0;
  while (true) {
    if (stop && stop()) return absl::CancelledError("the coordinator stops");
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("read", path, errno);
    if (n == 0) return crc;
    crc = Crc32c(crc, buffer.data(), static_cast<size_t>(n));
  }
}

}  // namespace

absl::Status CompareChecksums(const std::vector<FileSum>& files,
                              const std::function<bool()>& stop) {
  for (const FileSum& file : files) {
    ASSIGN_OR_RETURN(const uint32_t got, FileCrc32c(file.path, stop));
    if (absl::StrFormat("%08x", got) == file.crc32c) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has crc32c %08x, the manifest says %s", file.name, got, file.crc32c));
  }
  return absl::OkStatus();
}

ChecksumChecker::ChecksumChecker(std::function<void()> on_verdict)
    : on_verdict_(std::move(on_verdict)),
      thread_("checksums", [this](const StopToken& stop) { Loop(stop); }) {}

absl::optional<absl::Status> ChecksumChecker::Ask(const std::string& folder,
                                                  const std::vector<FileSum>& files) {
  MonitorLock lock(&mu_);
  Entry& entry = entries_[folder];
  const bool queued = !entry.files.empty() && !entry.verdict;
  if (entry.verdict && entry.files == files) {
    const absl::Status verdict = *entry.verdict;
    if (verdict.ok() || absl::IsInvalidArgument(verdict)) return verdict;
    entry = {};  // tells once; told_ keeps a name, which does no harm
    return verdict;
  }
  entry = {files, absl::nullopt};
  if (!queued) queue_.push_back(folder);
  return absl::nullopt;
}

void ChecksumChecker::Loop(const StopToken& stop) {
  while (!stop.StopRequested()) {
    std::string folder;
    std::vector<FileSum> files;
    {
      MonitorLock lock(&mu_);
      const auto some = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !queue_.empty(); };
      if (!mu_.AwaitWithTimeout(some, kTick)) continue;
      folder = std::move(queue_.front());
      queue_.pop_front();
      files = entries_[folder].files;
    }
    const absl::Status verdict = CompareChecksums(files, [&] { return stop.StopRequested(); });
    SY_LOG(INFO) << "checksums read folder=" << folder
                 << " result=" << (verdict.ok() ? "whole" : verdict.message());
    {
      MonitorLock lock(&mu_);
      Entry& entry = entries_[folder];
      if (entry.files != files) {
        queue_.push_back(folder);  // changed meanwhile
        continue;
      }
      entry.verdict = verdict;
      told_.push_back(folder);
      while (told_.size() > kMaxVerdicts) {
        const auto oldest = entries_.find(told_.front());
        if (oldest != entries_.end() && oldest->second.verdict) entries_.erase(oldest);
        told_.pop_front();
      }
    }
    on_verdict_();
  }
}

}  // namespace switchyard
