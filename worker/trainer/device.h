// The device of a rank: opening it, its memory, and small results on their way to the host.
//
// Streams: everything a step computes is queued on the current stream of the device (the default
// one, where ranks are processes). What several GPUs exchange has streams of its own
// (docs/overlap.md). Copies of micro-batches and of weights being loaded go the same way, from
// pinned memory, so that they wait for nothing. Only offloaded activations travel on a stream of
// their own (models/activation_offload.h), and snapshots for checkpoints (checkpoint/snapshot.h).
#ifndef SWITCHYARD_WORKER_TRAINER_DEVICE_H_
#define SWITCHYARD_WORKER_TRAINER_DEVICE_H_

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <optional>
#include <string>

namespace switchyard {

// "cpu" or "cuda:<index>"; the GPU becomes this thread's current one, and the allocator is told to
// grow its segments instead of leaving holes.
// Throws TrainError CONFIG_INVALID: a name of another form, a build without CUDA, no such GPU, or a
// GPU whose compute capability is not 9.0; the message says what was found.
at::Device OpenDevice(const std::string& name);

struct DeviceMemory {
  int64_t allocated_bytes = 0;  // by tensors now
  int64_t peak_bytes = 0;       // the most they held since the last reset
  int64_t reserved_bytes = 0;   // by the allocator, now: what nvidia-smi sees, less the context
};
// On the CPU: the process's resident memory, peak over its life.
DeviceMemory ReadDeviceMemory(at::Device device);
void ResetPeakDeviceMemory(at::Device device);

// Waits for all queued work and gives back what the allocator holds without need.
void FlushDevice(at::Device device);

// A small tensor's copy to the host, which does not make later work of the device wait.
class HostCopy {
 public:
  explicit HostCopy(const at::Tensor& tensor);
  // Blocks until the copy has arrived. A tensor on the CPU is itself.
  const at::Tensor& Wait() const;

 private:
  at::Tensor host_;
  std::optional<c10::Event> copied_;
};

// A point of the current stream's work, or of the host's time.
c10::Event RecordEvent(at::Device device, bool timing);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_DEVICE_H_
