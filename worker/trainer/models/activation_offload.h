// Block inputs in pinned host memory between the forward and the backward of a micro-batch.
//
// Only what full recomputation keeps of a block goes: at Qwen3-30B-A3B's shape the 4 KB of a
// token's residual stream cross PCIe (about 50 GB/s) in a quarter of the time that a block computes
// on them, the 64 KB of the whole lean set would take four times as long as it.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_ACTIVATION_OFFLOAD_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_ACTIVATION_OFFLOAD_H_

#include <ATen/core/Tensor.h>

#include <memory>

namespace switchyard {

// One thread. Tensors change place under their owner's name: `tensor` is replaced. Copies run on a
// stream of their own, beside the current one, which never waits for the host. Tensors that are not
// on CUDA stay where they are.
class ActivationOffload {
 public:
  ActivationOffload();
  ~ActivationOffload();

  // To the host, after what the current stream has been told so far. The allocator gives the device
  // memory to others once it sees, in a later allocation, that the copy has read it: a host that
  // has queued many blocks ahead finds several still taken, and asks the driver for more.
  void Store(at::Tensor* tensor);
  // Starts the way back of what Store took, if it took it; `tensor` may be used after Load.
  void Prefetch(at::Tensor* tensor);
  // Makes the current stream wait until the tensor is back.
  void Load(at::Tensor* tensor);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_ACTIVATION_OFFLOAD_H_
