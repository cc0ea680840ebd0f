#include "worker/trainer/parallel/nccl_window.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <nccl_device.h>

#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/trainer/parallel/agree.h"
#include "worker/trainer/parallel/nccl_window_pointers.h"

namespace switchyard {
namespace {

constexpr int kNcclVersion = 22809;

std::string Version(int code) {
  return absl::StrCat(code / 10000, ".", code / 100 % 100, ".", code % 100);
}

// A communicator of the window's own: nothing else is ever called on it, so windows are registered
// in one order, and another communicator's failure does not take it along.
class NcclWindow final : public SymmetricMemory {
 public:
  explicit NcclWindow(c10::Device device) : device_(device) {}
  ~NcclWindow() override {
    const c10::cuda::CUDAGuard guard(device_);
    cudaDeviceSynchronize();
    if (window_ != nullptr && !abandoned_) ncclCommWindowDeregister(comm_, window_);
    if (comm_ != nullptr && abandoned_) ncclCommAbort(comm_);
    if (block_ != nullptr) ncclMemFree(block_);
    if (comm_ != nullptr && !abandoned_) ncclCommDestroy(comm_);
  }
  void Abandon() override { abandoned_ = true; }

  // Collective. Returns what failed, or nothing.
  std::string Open(Comm& group, int64_t bytes) {
    const c10::cuda::CUDAGuard guard(device_);
    ncclUniqueId id = {};
    ncclResult_t result = ncclSuccess;
    if (group.rank() == 0) result = ncclGetUniqueId(&id);
    at::Tensor id_bytes = at::empty({sizeof(id)}, at::kByte);
    std::memcpy(id_bytes.mutable_data_ptr(), &id, sizeof(id));
    group.Broadcast(id_bytes, 0);
    std::memcpy(&id, id_bytes.const_data_ptr(), sizeof(id));
    if (result == ncclSuccess) result = ncclCommInitRank(&comm_, group.size(), id, group.rank());
    if (result != ncclSuccess) return Failed("ncclCommInitRank", result);
    // From here on every rank makes every call; all ranks of a node see the same team.
    const int reachable = ncclTeamLsa(comm_).nRanks;
    if (reachable != group.size()) {
      return absl::StrCat("NCCL sees only ", reachable, " of the group's ", group.size(),
                          " ranks on GPUs that can address each other");
    }
    std::string fault;
    result = ncclMemAlloc(&block_, bytes);
    if (result != ncclSuccess) {
      fault = absl::StrCat(bytes, " bytes: ", Failed("ncclMemAlloc", result));
    } else if (cudaMemset(block_, 0, bytes) != cudaSuccess ||
               cudaDeviceSynchronize() != cudaSuccess) {
      fault = CudaFailed("zero the window");
    }
    // Registering waits for all ranks.
    if (!AgreeOnAll(group, fault.empty())) {
      return fault.empty() ? "another rank could not allocate" : fault;
    }
    result = ncclCommWindowRegister(comm_, block_, bytes, &window_, NCCL_WIN_COLL_SYMMETRIC);
    if (result != ncclSuccess) return Failed("ncclCommWindowRegister", result);
    if (window_ == nullptr) {
      return "NCCL left the window unset: symmetric memory needs GPUs that can address each other "
             "(nvidia-smi topo -p2p r) and NCCL_CUMEM_ENABLE and NCCL_WIN_ENABLE not 0";
    }
    at::Tensor table = at::empty({group.size()}, at::TensorOptions(device_).dtype(at::kLong));
    cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    if (NcclWindowPointers(window_, group.size(), static_cast<void**>(table.data_ptr()), stream) !=
            cudaSuccess ||
        cudaStreamSynchronize(stream) != cudaSuccess) {
      return CudaFailed("read the window's pointers");
    }
    const at::Tensor pointers = table.cpu();
    for (int r = 0; r < group.size(); ++r) {
      blocks_.push_back(reinterpret_cast<uint8_t*>(pointers.const_data_ptr<int64_t>()[r]));
      if (blocks_.back() == nullptr) return absl::StrCat("the window has no part of rank ", r);
    }
    return "";
  }

 private:
  std::string Failed(const char* call, ncclResult_t result) const {
    return absl::StrCat(call, ": ", ncclGetErrorString(result), ": ", ncclGetLastError(comm_));
  }
  static std::string CudaFailed(const char* what) {
    return absl::StrCat(what, ": ", cudaGetErrorString(cudaGetLastError()));
  }

  const c10::Device device_;
  ncclComm_t comm_ = nullptr;
  void* block_ = nullptr;
  ncclWindow_t window_ = nullptr;
  bool abandoned_ = false;
};

}  // namespace

std::string WhyNoNcclWindow() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "NCCL does not tell its version";
  if (version == kNcclVersion) return "";
  // Device code of 2.28 is inlined here and must match the library's structures exactly.
  return absl::StrCat("NCCL is ", Version(version), ", built against ", Version(kNcclVersion));
}

SymmetricMemoryResult MakeNcclWindow(Comm& group, c10::Device device, int64_t bytes) {
  static_assert(NCCL_VERSION_CODE == kNcclVersion);
  auto window = std::make_unique<NcclWindow>(device);
  std::string fault = window->Open(group, bytes);
  if (!fault.empty()) return {nullptr, std::move(fault)};
  return {std::move(window), absl::StrCat("a window of NCCL ", Version(kNcclVersion))};
}

}  // namespace switchyard
