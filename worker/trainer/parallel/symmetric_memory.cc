#include "worker/trainer/parallel/symmetric_memory.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <functional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "worker/trainer/parallel/agree.h"
#include "worker/trainer/parallel/nccl_window.h"

namespace switchyard {
namespace {

// A block on one device, shared by the handles of all ranks: it lasts as long as any of them may
// store into it.
class SharedBlock {
 public:
  SharedBlock(c10::Device device, int64_t bytes) : device_(device) {
    const c10::cuda::CUDAGuard guard(device_);
    if (cudaMalloc(&data_, bytes) != cudaSuccess) {
      fault_ = absl::StrCat("allocate ", bytes, " bytes: ", cudaGetErrorString(cudaGetLastError()));
    } else if (cudaMemset(data_, 0, bytes) != cudaSuccess ||
               cudaDeviceSynchronize() != cudaSuccess) {
      fault_ = absl::StrCat("zero a block: ", cudaGetErrorString(cudaGetLastError()));
    }
  }
  ~SharedBlock() {
    const c10::cuda::CUDAGuard guard(device_);
    cudaFree(data_);
  }
  SharedBlock(const SharedBlock&) = delete;
  SharedBlock& operator=(const SharedBlock&) = delete;

  c10::Device device() const { return device_; }
  void* data() const { return data_; }
  const std::string& fault() const { return fault_; }

 private:
  const c10::Device device_;
  void* data_ = nullptr;
  std::string fault_;
};

class InProcessMemory final : public SymmetricMemory {
 public:
  explicit InProcessMemory(c10::Device device) : device_(device) {}
  ~InProcessMemory() override {
    const c10::cuda::CUDAGuard guard(device_);
    cudaDeviceSynchronize();
  }
  bool in_process() const override { return true; }

  // Collective. Returns what failed, or nothing.
  std::string Open(Comm& group, int64_t bytes) {
    const c10::cuda::CUDAGuard guard(device_);
    const auto mine = std::make_shared<SharedBlock>(device_, bytes);
    // Addresses of the ranks' own pointers: they live until all have copied them.
    at::Tensor all = at::empty({group.size()}, at::kLong);
    group.AllGather(all, at::tensor({reinterpret_cast<int64_t>(&mine)}, at::kLong));
    for (int r = 0; r < group.size(); ++r) {
      const int64_t address = all.const_data_ptr<int64_t>()[r];
      shared_.push_back(*reinterpret_cast<const std::shared_ptr<SharedBlock>*>(address));
    }
    group.Barrier();
    for (const auto& block : shared_) {
      if (!block->fault().empty()) return block->fault();
      if (std::string fault = Reach(block->device()); !fault.empty()) return fault;
      blocks_.push_back(static_cast<uint8_t*>(block->data()));
    }
    return "";
  }

 private:
  std::string Reach(c10::Device peer) const {
    if (peer == device_) return "";
    int reaches = 0;
    if (cudaDeviceCanAccessPeer(&reaches, device_.index(), peer.index()) != cudaSuccess ||
        reaches == 0) {
      return absl::StrCat("GPU ", int{device_.index()}, " cannot address GPU ", int{peer.index()});
    }
    const cudaError_t error = cudaDeviceEnablePeerAccess(peer.index(), 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled) cudaGetLastError();  // not sticky: forget it
    if (error == cudaSuccess || error == cudaErrorPeerAccessAlreadyEnabled) return "";
    return absl::StrCat("let GPU ", int{device_.index()}, " address GPU ", int{peer.index()}, ": ",
                        cudaGetErrorString(cudaGetLastError()));
  }

  const c10::Device device_;
  std::vector<std::shared_ptr<SharedBlock>> shared_;
};

SymmetricMemoryResult MakeInProcess(Comm& group, c10::Device device, int64_t bytes) {
  auto memory = std::make_unique<InProcessMemory>(device);
  std::string fault = memory->Open(group, bytes);
  if (!fault.empty()) return {nullptr, std::move(fault)};
  return {std::move(memory), "peer access inside one process"};
}

// Unlike any other process's.
int64_t ProcessNumber() {
  static const int64_t number = [] {
    std::random_device random;
    return static_cast<int64_t>(uint64_t{random()} << 32 | random());
  }();
  return number;
}

int64_t HostNumber() {
  const absl::StatusOr<std::string> boot = ReadFile("/proc/sys/kernel/random/boot_id");
  return static_cast<int64_t>(std::hash<std::string>()(boot.ok() ? *boot : ""));
}

bool SameOnAllRanks(Comm& group, int64_t mine) {
  at::Tensor all = at::empty({group.size()}, at::kLong);
  group.AllGather(all, at::tensor({mine}, at::kLong));
  return all.eq(mine).all().item<bool>();
}

}  // namespace

SymmetricMemoryResult MakeSymmetricMemory(Comm& group, c10::Device device, int64_t bytes) {
  SymmetricMemoryResult made;
  if (SameOnAllRanks(group, ProcessNumber())) {
    made = MakeInProcess(group, device, bytes);
  } else if (!SameOnAllRanks(group, HostNumber())) {
    return {nullptr, "the ranks are on several hosts"};
  } else {
    const std::string fault = WhyNoNcclWindow();
    if (!AgreeOnAll(group, fault.empty())) {
      return {nullptr, fault.empty() ? "another rank has no NCCL windows" : fault};
    }
    made = MakeNcclWindow(group, device, bytes);
  }
  const bool mine = made.memory != nullptr;
  if (AgreeOnAll(group, mine)) return made;
  if (mine) {
    made.memory->Abandon();
    return {nullptr, "another rank could not have it"};
  }
  return made;
}

}  // namespace switchyard
