#include "worker/trainer/checkpoint/range_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "base/thread.h"

namespace switchyard {
namespace {

constexpr uint64_t kBlock = 4096;  // alignment of O_DIRECT that every disk takes

// Neighbouring parts of ranges, at most one buffer full.
struct Window {
  int file;
  uint64_t begin, end;  // in the file
  size_t first_range;
};

uint64_t EndOf(const FileRange& range) { return range.offset + range.bytes; }

std::vector<Window> CutWindows(const std::vector<FileRange>& ranges, uint64_t window_bytes) {
  std::vector<Window> windows;
  for (size_t r = 0; r < ranges.size(); ++r) {
    for (uint64_t at = ranges[r].offset; at < EndOf(ranges[r]);) {
      const bool joins = !windows.empty() && windows.back().file == ranges[r].file &&
                         windows.back().end == at && at % window_bytes != 0;
      if (!joins) windows.push_back({ranges[r].file, at, at, r});
      at = std::min(EndOf(ranges[r]), (at / window_bytes + 1) * window_bytes);
      windows.back().end = at;
    }
  }
  return windows;
}

// A file opened twice: through the page cache and past it.
struct OpenFile {
  UniqueFd cached;
  UniqueFd direct;  // invalid: the file system has no O_DIRECT
  std::atomic<bool> use_direct{true};
};

class RangeWriter {
 public:
  RangeWriter(const std::string& folder, const std::vector<std::string>& names,
              const std::vector<FileRange>& ranges,
              const std::function<absl::Status(const std::vector<RangePart>&)>& fill,
              const RangeWriterOptions& options)
      : folder_(folder),
        names_(names),
        ranges_(ranges),
        fill_(fill),
        options_(options),
        windows_(CutWindows(ranges, options.window_bytes)),
        files_(names.size()),
        crcs_(windows_.size()) {}

  absl::StatusOr<std::vector<FileRun>> Run() {
    for (const Window& window : windows_) RETURN_IF_ERROR(Open(window.file));
    if (options_.threads == 1) {
      Work();
    } else {
      std::vector<Thread> threads;
      for (int t = 0; t < options_.threads; ++t) {
        threads.emplace_back(absl::StrCat("write-", t), [this](const StopToken&) { Work(); });
      }
      // The destructors of the threads join them.
    }
    {
      absl::MutexLock lock(&mu_);
      RETURN_IF_ERROR(status_);
    }
    for (size_t f = 0; f < files_.size(); ++f) {
      if (files_[f].cached.valid() && ::fsync(files_[f].cached.get()) != 0) {
        return ErrnoStatus("fsync", Path(static_cast<int>(f)), errno);
      }
    }
    return Runs();
  }

 private:
  std::string Path(int file) const { return absl::StrCat(folder_, "/", names_[file]); }

  absl::Status Open(int file) {
    OpenFile& opened = files_[file];
    if (opened.cached.valid()) return absl::OkStatus();
    const std::string path = Path(file);
    opened.cached.Reset(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!opened.cached.valid()) return ErrnoStatus("open", path, errno);
    opened.direct.Reset(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_DIRECT));
    if (!opened.direct.valid() && errno != EINVAL) return ErrnoStatus("open", path, errno);
    return absl::OkStatus();
  }

  // Takes windows until there are none or one has failed.
  void Work() {
    const std::shared_ptr<char> buffer =
        options_.make_buffer != nullptr
            ? options_.make_buffer(options_.window_bytes)
            : std::shared_ptr<char>(
                  static_cast<char*>(std::aligned_alloc(kBlock, options_.window_bytes)), std::free);
    absl::Status status = buffer != nullptr ? absl::OkStatus()
                                            : absl::ResourceExhaustedError(absl::StrCat(
                                                  "write ", folder_, ": no memory for a buffer of ",
                                                  options_.window_bytes, " bytes"));
    while (status.ok() && !failed_.load()) {
      if (options_.cancelled != nullptr && options_.cancelled->load()) {
        status = absl::CancelledError(absl::StrCat("write ", folder_, ": cancelled"));
        break;
      }
      const size_t w = next_.fetch_add(1);
      if (w >= windows_.size()) return;
      status = WriteWindow(windows_[w], buffer.get(), &crcs_[w]);
    }
    if (status.ok()) return;
    failed_.store(true);
    absl::MutexLock lock(&mu_);
    if (status_.ok()) status_ = std::move(status);
  }

  absl::Status WriteWindow(const Window& window, char* buffer, uint32_t* crc) {
    // Where the window would begin in a buffer that begins at a block of the file.
    char* const data = buffer + window.begin % kBlock;
    const uint64_t size = window.end - window.begin;
    std::vector<RangePart> parts;
    for (size_t r = window.first_range; r < ranges_.size(); ++r) {
      if (ranges_[r].file != window.file || ranges_[r].offset >= window.end) break;
      const uint64_t first = std::max(window.begin, ranges_[r].offset);
      const uint64_t last = std::min(window.end, EndOf(ranges_[r]));
      parts.push_back({ranges_[r].source, first - ranges_[r].offset, last - first,
                       data + (first - window.begin)});
    }
    RETURN_IF_ERROR(fill_(parts));
    *crc = Crc32c(0, data, size);

    OpenFile& file = files_[window.file];
    const uint64_t first_block = (window.begin + kBlock - 1) / kBlock * kBlock;
    const uint64_t last_block = window.end / kBlock * kBlock;
    if (file.direct.valid() && file.use_direct.load() &&
        last_block >= first_block + std::max(kBlock, options_.direct_from_bytes)) {
      const absl::StatusOr<bool> written = WriteDirect(file, window.file, first_block, last_block,
                                                       data + (first_block - window.begin));
      RETURN_IF_ERROR(written.status());
      if (*written) {
        RETURN_IF_ERROR(WriteAt(file.cached.get(), window.file, window.begin,
                                first_block - window.begin, data));
        return WriteAt(file.cached.get(), window.file, last_block, window.end - last_block,
                       data + (last_block - window.begin));
      }
    }
    return WriteAt(file.cached.get(), window.file, window.begin, size, data);
  }

  absl::Status WriteAt(int fd, int file, uint64_t offset, uint64_t bytes, const char* data) {
    while (bytes > 0) {
      const ssize_t n = ::pwrite(fd, data, bytes, static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoStatus("write", Path(file), errno);
      offset += static_cast<uint64_t>(n);
      data += n;
      bytes -= static_cast<uint64_t>(n);
    }
    return absl::OkStatus();
  }

  // False: this file system does not take it after all; nothing was written that matters.
  absl::StatusOr<bool> WriteDirect(OpenFile& file, int index, uint64_t begin, uint64_t end,
                                   const char* data) {
    while (begin < end) {
      const ssize_t n = ::pwrite(file.direct.get(), data, end - begin, static_cast<off_t>(begin));
      if (n < 0 && errno == EINTR) continue;
      // Also after a short write that left the rest unaligned.
      if (n < 0 && errno == EINVAL) {
        if (begin % kBlock == 0) file.use_direct.store(false);
        return false;
      }
      if (n < 0) return ErrnoStatus("write", Path(index), errno);
      begin += static_cast<uint64_t>(n);
      data += n;
    }
    return true;
  }

  std::vector<FileRun> Runs() const {
    std::vector<FileRun> runs;
    for (size_t w = 0; w < windows_.size(); ++w) {
      const Window& window = windows_[w];
      runs.push_back({window.file, window.begin, window.end - window.begin, crcs_[w]});
    }
    return JoinRuns(std::move(runs));
  }

  const std::string& folder_;
  const std::vector<std::string>& names_;
  const std::vector<FileRange>& ranges_;
  const std::function<absl::Status(const std::vector<RangePart>&)>& fill_;
  const RangeWriterOptions& options_;
  const std::vector<Window> windows_;
  std::vector<OpenFile> files_;
  std::vector<uint32_t> crcs_;  // of each window, by the thread that wrote it
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  absl::Mutex mu_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<std::vector<FileRun>> WriteRanges(
    const std::string& folder, const std::vector<std::string>& files, std::vector<FileRange> ranges,
    const std::function<absl::Status(const std::vector<RangePart>& parts)>& fill,
    const RangeWriterOptions& options) {
  std::sort(ranges.begin(), ranges.end(), [](const FileRange& a, const FileRange& b) {
    return std::pair(a.file, a.offset) < std::pair(b.file, b.offset);
  });
  for (size_t r = 1; r < ranges.size(); ++r) {
    if (ranges[r].file == ranges[r - 1].file && ranges[r].offset < EndOf(ranges[r - 1])) {
      return absl::InternalError(absl::StrCat("bug: write ", folder, "/", files[ranges[r].file],
                                              ": two ranges hold byte ", ranges[r].offset));
    }
  }
  return RangeWriter(folder, files, ranges, fill, options).Run();
}

}  // namespace switchyard
