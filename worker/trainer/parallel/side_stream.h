// A stream beside the one that computes: collectives that the model's computation is to hide.
//
// Streams and events only order work on the device; the host never waits here. On the CPU, where a
// collective blocks, work runs at once and there is nothing to wait for.
//
// Why this cannot deadlock, with kernels about that spin until a peer has sent (push_dispatcher.h,
// NCCL): one thread of each rank issues everything, in the same order on all ranks, and every wait,
// an event's or a kernel's, is for something issued earlier, or for a peer's half of the same
// transfer. A device that ran its work in the order of issue would therefore finish, however its
// streams share hardware queues. Streams let later work go first; that is harmless as long as what
// spins leaves room for the rest: the CTAs of all kernels that can spin at once are far fewer than
// the SMs (docs/overlap.md has the sum), and kernels that do not spin end by themselves.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_SIDE_STREAM_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_SIDE_STREAM_H_

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <functional>
#include <optional>

namespace switchyard {

// A point in a stream's work.
class StreamPoint {
 public:
  StreamPoint() = default;  // nothing to wait for
  explicit StreamPoint(const c10::Stream& stream);
  // Makes `stream`, or the calling thread's current stream of `device`, wait for it; any device,
  // any number of times.
  void WaitOn(const c10::Stream& stream) const;
  void WaitOn(at::Device device) const;

 private:
  std::optional<c10::Event> event_;
};

// The end of what the calling thread's current stream of `device` has been told so far; on the CPU
// nothing to wait for.
StreamPoint CurrentPoint(at::Device device);

// One thread. Memory that work on it uses is kept alive by its user until the stream that the
// memory was allocated on has waited for the work's point.
class SideStream {
 public:
  // A high-priority stream of the device's pool, taken when it is first needed.
  explicit SideStream(at::Device device) : device_(device) {}

  // Calls `queue` with this stream as the current one: what it queues comes after all that the
  // calling thread's current stream has been told so far, and before the point that is returned.
  StreamPoint Run(const std::function<void()>& queue);

 private:
  at::Device device_;
  std::optional<c10::Stream> stream_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_SIDE_STREAM_H_
