#include "worker/link/frame.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/clock.h"

namespace switchyard {
namespace {

constexpr size_t kHeaderBytes = 4;

// Waits until `fd` is ready for `events` or the clock reads `deadline`. False: deadline.
absl::StatusOr<bool> WaitReady(int fd, short events, absl::Duration deadline) {
  while (true) {
    const absl::Duration left = deadline - RealClock::Get().Monotonic();
    // Rounded up, so that a wait never ends early and spins.
    const int64_t milliseconds = absl::ToInt64Milliseconds(left + absl::Microseconds(999));
    pollfd entry{fd, events, 0};
    const int ready = ::poll(
        &entry, 1,
        static_cast<int>(std::clamp<int64_t>(milliseconds, 0, std::numeric_limits<int>::max())));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return ErrnoStatus("poll", "the link", errno);
    if (RealClock::Get().Monotonic() >= deadline) return false;
  }
}

}  // namespace

absl::StatusOr<SocketPair> MakeSocketPair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
    return ErrnoStatus("make a socket pair", "", errno);
  }
  return SocketPair{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

bool IsLinkClosed(const absl::Status& status) {
  return status.code() == absl::StatusCode::kOutOfRange;
}

absl::Status FrameChannel::Send(const Json& frame, absl::Duration timeout) {
  const std::string text = DumpJson(frame);
  if (text.size() > max_frame_bytes_) {
    return absl::InvalidArgumentError(
        absl::StrCat("send a frame: ", text.size(), " bytes, the limit is ", max_frame_bytes_));
  }
  std::string bytes;
  bytes.reserve(kHeaderBytes + text.size());
  for (size_t i = 0; i < kHeaderBytes; ++i) {
    bytes.push_back(static_cast<char>(text.size() >> (8 * i) & 0xff));
  }
  bytes += text;

  const absl::Duration deadline = RealClock::Get().Monotonic() + timeout;
  absl::MutexLock lock(&send_mu_);
  if (send_broken_) {
    return absl::FailedPreconditionError("send a frame: an earlier one was only sent in part");
  }
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n =
        ::send(fd_.get(), bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) {
      done += static_cast<size_t>(n);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
      send_broken_ = done > 0;
      return ErrnoStatus("send a frame", "", errno);
    }
    absl::StatusOr<bool> ready = WaitReady(fd_.get(), POLLOUT, deadline);
    if (!ready.ok() || !*ready) {
      send_broken_ = done > 0;
      if (!ready.ok()) return ready.status();
      return absl::DeadlineExceededError(absl::StrCat("send a frame: the other end took ", done,
                                                      " of ", bytes.size(), " bytes within ",
                                                      absl::FormatDuration(timeout)));
    }
  }
  return absl::OkStatus();
}

absl::Status FrameChannel::Fail(absl::Status status) {
  receive_error_ = status;
  return status;
}

absl::StatusOr<Json> TakeFrame(absl::string_view bytes, size_t max_frame_bytes, size_t* used) {
  if (bytes.size() < kHeaderBytes) return absl::DeadlineExceededError("no frame yet");
  size_t length = 0;
  for (size_t i = 0; i < kHeaderBytes; ++i) {
    length |= static_cast<size_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  }
  if (length > max_frame_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("receive a frame: its header says ", length,
                                                   " bytes, the limit is ", max_frame_bytes));
  }
  if (bytes.size() < kHeaderBytes + length) return absl::DeadlineExceededError("no frame yet");
  absl::StatusOr<Json> frame = ParseJson(bytes.substr(kHeaderBytes, length), "a frame");
  if (!frame.ok()) return frame.status();
  if (!frame->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("receive a frame: expected an object, got ", frame->type_name()));
  }
  *used = kHeaderBytes + length;
  return frame;
}

absl::StatusOr<Json> FrameChannel::NextBuffered() {
  size_t used = 0;
  absl::StatusOr<Json> frame = TakeFrame(buffer_, max_frame_bytes_, &used);
  if (absl::IsInvalidArgument(frame.status())) return Fail(frame.status());
  buffer_.erase(0, used);
  return frame;
}

absl::StatusOr<Json> FrameChannel::Receive(absl::Duration timeout) {
  const absl::Duration deadline = RealClock::Get().Monotonic() + timeout;
  absl::MutexLock lock(&receive_mu_);
  while (true) {
    if (!receive_error_.ok()) return receive_error_;
    absl::StatusOr<Json> frame = NextBuffered();
    if (frame.ok() || !absl::IsDeadlineExceeded(frame.status())) return frame;

    char chunk[1 << 16];
    const ssize_t n = ::recv(fd_.get(), chunk, sizeof(chunk), MSG_DONTWAIT);
    if (n > 0) {
      buffer_.append(chunk, static_cast<size_t>(n));
      continue;
    }
    // A peer that died with our bytes unread resets the connection: as good as closed.
    if (n == 0 || errno == ECONNRESET) {
      if (buffer_.empty()) return Fail(absl::OutOfRangeError("the link was closed"));
      return Fail(absl::DataLossError(absl::StrCat("receive a frame: the link was closed after ",
                                                   buffer_.size(), " bytes of it")));
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
      return Fail(ErrnoStatus("receive a frame", "", errno));
    }
    if (timeout <= absl::ZeroDuration()) return absl::DeadlineExceededError("no frame yet");
    absl::StatusOr<bool> ready = WaitReady(fd_.get(), POLLIN, deadline);
    if (!ready.ok()) return Fail(ready.status());
    if (!*ready) {
      return absl::DeadlineExceededError(
          absl::StrCat("receive a frame: none within ", absl::FormatDuration(timeout)));
    }
  }
}

}  // namespace switchyard
