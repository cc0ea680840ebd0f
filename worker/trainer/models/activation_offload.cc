#include "worker/trainer/models/activation_offload.h"

#include <ATen/ATen.h>

#include <utility>

#if defined(SY_CUDA)
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <unordered_map>
#endif

namespace switchyard {

#if defined(SY_CUDA)

struct ActivationOffload::Impl {
  // Lets what is queued on `second` from now on come after what is queued on `first`.
  static void Order(c10::cuda::CUDAStream first, c10::cuda::CUDAStream second) {
    at::cuda::CUDAEvent event;
    event.record(first);
    event.block(second);
  }

  c10::cuda::CUDAStream copies = c10::cuda::getStreamFromPool();
  c10::Device device = c10::Device(c10::kCUDA, c10::cuda::current_device());
  // By the device memory of a tensor on its way back: when it is there.
  std::unordered_map<const void*, at::cuda::CUDAEvent> arriving;
};

void ActivationOffload::Store(at::Tensor* tensor) {
  if (!tensor->is_cuda() || tensor->numel() == 0) return;
  if (impl_ == nullptr) impl_ = std::make_unique<Impl>();
  Impl::Order(c10::cuda::getCurrentCUDAStream(), impl_->copies);
  at::Tensor host = at::empty(
      tensor->sizes(),
      at::TensorOptions().dtype(tensor->scalar_type()).device(at::kCPU).pinned_memory(true));
  {
    const c10::cuda::CUDAStreamGuard guard(impl_->copies);
    host.copy_(*tensor, /*non_blocking=*/true);
  }
  tensor->record_stream(impl_->copies);
  *tensor = std::move(host);
}

void ActivationOffload::Prefetch(at::Tensor* tensor) {
  if (impl_ == nullptr || !tensor->defined() || tensor->is_cuda() || tensor->numel() == 0) return;
  at::Tensor back =
      at::empty(tensor->sizes(), tensor->options().device(impl_->device).pinned_memory(false));
  // The memory may still be read by what used it before.
  Impl::Order(c10::cuda::getCurrentCUDAStream(), impl_->copies);
  {
    const c10::cuda::CUDAStreamGuard guard(impl_->copies);
    back.copy_(*tensor, /*non_blocking=*/true);
  }
  impl_->arriving[back.data_ptr()].record(impl_->copies);
  *tensor = std::move(back);
}

void ActivationOffload::Load(at::Tensor* tensor) {
  if (impl_ == nullptr || tensor->numel() == 0) return;
  Prefetch(tensor);
  const auto arriving = impl_->arriving.find(tensor->data_ptr());
  if (arriving == impl_->arriving.end()) return;
  arriving->second.block(c10::cuda::getCurrentCUDAStream());
  impl_->arriving.erase(arriving);
}

#else

struct ActivationOffload::Impl {};
void ActivationOffload::Store(at::Tensor*) {}
void ActivationOffload::Prefetch(at::Tensor*) {}
void ActivationOffload::Load(at::Tensor*) {}

#endif

ActivationOffload::ActivationOffload() = default;
ActivationOffload::~ActivationOffload() = default;

}  // namespace switchyard
