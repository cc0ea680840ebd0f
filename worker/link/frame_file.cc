#include "worker/link/frame_file.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "worker/link/frame.h"

namespace switchyard {
namespace {

constexpr int64_t kReadBytes = 256 << 10;
// Less is not worth a call.
constexpr int64_t kFreeBytes = 256 << 10;

}  // namespace

absl::StatusOr<Json> FrameFile::Next(int64_t limit) {
  while (true) {
    size_t used = 0;
    absl::StatusOr<Json> frame = TakeFrame(buffer_, kMaxFrameBytes, &used);
    if (!absl::IsDeadlineExceeded(frame.status())) {
      buffer_.erase(0, used);
      position_ += static_cast<int64_t>(used);
      return frame;
    }
    const int64_t from = position_ + static_cast<int64_t>(buffer_.size());
    if (from >= limit) return frame;
    if (!fd_.valid()) fd_.Reset(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
    if (!fd_.valid()) return ErrnoStatus("open", path_, errno);
    std::string chunk(static_cast<size_t>(std::min(limit - from, kReadBytes)), '\0');
    const ssize_t n = ::pread(fd_.get(), chunk.data(), chunk.size(), static_cast<off_t>(from));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return absl::DataLossError(
          absl::StrCat("read ", path_, " at ", from, ": ", limit - from, " bytes should be there"));
    }
    buffer_.append(chunk, 0, static_cast<size_t>(n));
  }
}

void FrameFile::Free(int64_t end) {
  if (!fd_.valid() || end - freed_ < kFreeBytes) return;
  [[maybe_unused]] const int unused = ::fallocate(
      fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(end));
  freed_ = end;
}

}  // namespace switchyard
