#include "worker/trainer/device.h"

#include <ATen/ATen.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#if defined(SY_CUDA)
#include <cuda_runtime_api.h>
#endif

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "worker/trainer/failure.h"
#include "worker/trainer/stats.h"

namespace switchyard {
namespace {

[[noreturn]] void Refuse(const std::string& name, const std::string& why) {
  throw TrainError(FailureReason::kConfigInvalid, absl::StrCat("device \"", name, "\": ", why));
}

#if defined(SY_CUDA)
at::Device OpenGpu(const std::string& name, int index) {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess || count == 0) {
    Refuse(name, absl::StrCat("no GPU found: ", cudaGetErrorString(found)));
  }
  if (index >= count) Refuse(name, absl::StrCat("this machine has ", count, " GPUs"));
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    Refuse(name, cudaGetErrorString(error));
  }
  if (properties.major != 9 || properties.minor != 0) {
    Refuse(name, absl::StrCat(properties.name, " has compute capability ", properties.major, ".",
                              properties.minor, ", the kernels are for 9.0 (H100, H200)"));
  }
  c10::CachingAllocator::setAllocatorSettings("expandable_segments:True");
  const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
  c10::impl::VirtualGuardImpl(device.type()).setDevice(device);
  at::empty({1}, at::device(device));  // makes the context, so that faults of it show here
  return device;
}
#endif

}  // namespace

at::Device OpenDevice(const std::string& name) {
  if (name == "cpu") return at::kCPU;
  int index = 0;
  if (!absl::StartsWith(name, "cuda:") || !absl::SimpleAtoi(name.substr(5), &index) || index < 0) {
    Refuse(name, "expected cpu or cuda:<index>");
  }
#if defined(SY_CUDA)
  return OpenGpu(name, index);
#else
  Refuse(name, "this trainer was built without CUDA (cmake -DSY_CUDA=ON)");
#endif
}

DeviceMemory ReadDeviceMemory(at::Device device) {
  DeviceMemory memory;
  if (device.is_cpu()) {
    memory.peak_bytes = PeakHostMemoryBytes();
    return memory;
  }
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  memory.allocated_bytes = stats.allocated_bytes[kAll].current;
  memory.peak_bytes = stats.allocated_bytes[kAll].peak;
  memory.reserved_bytes = stats.reserved_bytes[kAll].current;
  return memory;
}

void ResetPeakDeviceMemory(at::Device device) {
  if (device.is_cuda()) c10::getDeviceAllocator(device.type())->resetPeakStats(device.index());
}

void FlushDevice(at::Device device) {
  if (!device.is_cuda()) return;
  RecordEvent(device, /*timing=*/false).synchronize();
  c10::getDeviceAllocator(device.type())->emptyCache({0, 0});
}

HostCopy::HostCopy(const at::Tensor& tensor) {
  if (tensor.is_cpu()) {
    host_ = tensor;
    return;
  }
  host_ = at::empty(tensor.sizes(), tensor.options().device(at::kCPU).pinned_memory(true));
  host_.copy_(tensor, /*non_blocking=*/true);
  copied_.emplace(RecordEvent(tensor.device(), /*timing=*/false));
}

const at::Tensor& HostCopy::Wait() const {
  if (copied_.has_value()) copied_->synchronize();
  return host_;
}

c10::Event RecordEvent(at::Device device, bool timing) {
  c10::Event event(device.type(),
                   timing ? c10::EventFlag::BACKEND_DEFAULT : c10::EventFlag::PYTORCH_DEFAULT);
  event.record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  return event;
}

}  // namespace switchyard
