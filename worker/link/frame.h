// The pipe between an agent and one rank: JSON frames over a connected stream socket.
//   frame = u32 little-endian length, then that many bytes of JSON (at most kMaxFrameBytes)
// Both ends use this class. The descriptor's blocking mode is not changed: the two ends of a
// socketpair are separate, but a forked child may share this end.
#ifndef SWITCHYARD_WORKER_LINK_FRAME_H_
#define SWITCHYARD_WORKER_LINK_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/json.h"

namespace switchyard {

inline constexpr size_t kMaxFrameBytes = 16u << 20;

struct SocketPair {
  UniqueFd first;
  UniqueFd second;
};
// A connected AF_UNIX stream pair, both ends close-on-exec. Errors: ResourceExhausted.
absl::StatusOr<SocketPair> MakeSocketPair();

// The first frame of `bytes`, and in `*used` how many bytes it takes. Errors: DeadlineExceeded: it
// is not whole; InvalidArgument: not a JSON object, or longer than `max_frame_bytes`.
absl::StatusOr<Json> TakeFrame(absl::string_view bytes, size_t max_frame_bytes, size_t* used);

// True for the status of a link whose other end closed between two frames.
bool IsLinkClosed(const absl::Status& status);

// Thread-safe: any number of senders, any number of receivers; frames are never mixed.
class FrameChannel {
 public:
  // Owns `fd`, a connected stream socket. `max_frame_bytes` is for tests.
  explicit FrameChannel(UniqueFd fd, size_t max_frame_bytes = kMaxFrameBytes)
      : fd_(std::move(fd)), max_frame_bytes_(max_frame_bytes) {}

  // Writes the whole frame, waiting at most `timeout` for a slow reader. Never raises SIGPIPE.
  // Errors: InvalidArgument: larger than the limit, nothing was written. Unavailable: the other end
  // is gone. DeadlineExceeded: the reader is stuck; a part may have been written, so that every
  // later Send answers FailedPrecondition.
  absl::Status Send(const Json& frame, absl::Duration timeout = absl::Seconds(30))
      ABSL_LOCKS_EXCLUDED(send_mu_);

  // The next frame, always an object. Waits at most `timeout`; zero only looks at what is there.
  // Errors: DeadlineExceeded: no whole frame yet; what arrived of it is kept, call again.
  //   OutOfRange: the other end closed after a whole frame (IsLinkClosed).
  //   DataLoss: it closed inside a frame. InvalidArgument: not a JSON object, or longer than the
  //   limit. After any but DeadlineExceeded the channel is of no use: the same error is repeated.
  absl::StatusOr<Json> Receive(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(receive_mu_);

  // For poll(2). After it is readable, call Receive(zero) until DeadlineExceeded: several frames
  // may have been read at once.
  int fd() const { return fd_.get(); }

 private:
  // A frame out of the buffer, or DeadlineExceeded when it is not whole.
  absl::StatusOr<Json> NextBuffered() ABSL_EXCLUSIVE_LOCKS_REQUIRED(receive_mu_);
  absl::Status Fail(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(receive_mu_);

  const UniqueFd fd_;
  const size_t max_frame_bytes_;
  absl::Mutex send_mu_;
  bool send_broken_ ABSL_GUARDED_BY(send_mu_) = false;
  absl::Mutex receive_mu_;
  absl::Status receive_error_ ABSL_GUARDED_BY(receive_mu_);
  std::string buffer_ ABSL_GUARDED_BY(receive_mu_);  // bytes of frames not yet handed out
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_LINK_FRAME_H_
