#include "worker/agent/device_inventory.h"

#include <dlfcn.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "worker/agent/host_stats.h"

namespace switchyard {
namespace {

// The part of nvml.h that we use. NVML's functions are versioned by suffix and keep their ABI.
using NvmlDevice = void*;
struct NvmlMemory {
  unsigned long long total, free, used;
};
constexpr unsigned kNvmlTextBytes = 96;

// nvmlProcessInfo_v2_t, which nvmlDeviceGetComputeRunningProcesses_v3 fills in.
struct NvmlProcess {
  unsigned pid;
  unsigned long long used_memory;
  unsigned gpu_instance, compute_instance;
};
constexpr int kNvmlSuccess = 0;
constexpr int kNvmlInsufficientSize = 7;

constexpr const char* kAdvice = "give --cpu-ranks N to offer N CPU ranks instead";

// The library, loaded and started for as long as this lives.
class Nvml {
 public:
  static absl::StatusOr<std::unique_ptr<Nvml>> Load(const std::string& library) {
    void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      return absl::NotFoundError(absl::StrCat("find GPUs: the NVIDIA driver's ", library,
                                              " cannot be loaded (", ::dlerror(), "); ", kAdvice));
    }
    std::unique_ptr<Nvml> nvml(new Nvml(handle));
    if (!nvml->Find("nvmlInit_v2", nvml->init) || !nvml->Find("nvmlShutdown", nvml->shutdown) ||
        !nvml->Find("nvmlErrorString", nvml->error_string) ||
        !nvml->Find("nvmlDeviceGetCount_v2", nvml->count) ||
        !nvml->Find("nvmlDeviceGetHandleByIndex_v2", nvml->by_index) ||
        !nvml->Find("nvmlDeviceGetName", nvml->name) ||
        !nvml->Find("nvmlDeviceGetUUID", nvml->uuid) ||
        !nvml->Find("nvmlDeviceGetMemoryInfo", nvml->memory) ||
        !nvml->Find("nvmlDeviceGetComputeRunningProcesses_v3", nvml->processes)) {
      return absl::UnavailableError(
          absl::StrCat("find GPUs: ", library, " lacks a function of NVML; ", kAdvice));
    }
    if (const int error = nvml->init(); error != kNvmlSuccess) {
      return nvml->Failed("start NVML", error);
    }
    nvml->started_ = true;
    return nvml;
  }
  ~Nvml() {
    if (started_) shutdown();
    ::dlclose(handle_);
  }
  absl::Status Failed(absl::string_view what, int error) const {
    return absl::UnavailableError(
        absl::StrCat("find GPUs: ", what, ": ", error_string(error), "; ", kAdvice));
  }

  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error_string)(int) = nullptr;
  int (*count)(unsigned*) = nullptr;
  int (*by_index)(unsigned, NvmlDevice*) = nullptr;
  int (*name)(NvmlDevice, char*, unsigned) = nullptr;
  int (*uuid)(NvmlDevice, char*, unsigned) = nullptr;
  int (*memory)(NvmlDevice, NvmlMemory*) = nullptr;
  int (*processes)(NvmlDevice, unsigned*, NvmlProcess*) = nullptr;

 private:
  explicit Nvml(void* handle) : handle_(handle) {}
  template <typename Function>
  bool Find(const char* symbol, Function& function) {
    function = reinterpret_cast<Function>(::dlsym(handle_, symbol));
    return function != nullptr;
  }
  void* const handle_;
  bool started_ = false;
};

}  // namespace

std::vector<DeviceInfo> CpuDevices(int num_ranks) {
  const int64_t memory_bytes = ReadHostMemory().total_bytes / num_ranks;
  std::vector<DeviceInfo> devices;
  for (int i = 0; i < num_ranks; ++i) {
    devices.push_back({i, "cpu", memory_bytes, absl::StrCat("cpu-", i)});
  }
  return devices;
}

absl::StatusOr<std::vector<DeviceInfo>> FindGpus(const std::string& library) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Nvml> nvml, Nvml::Load(library));
  unsigned num_gpus = 0;
  if (const int error = nvml->count(&num_gpus); error != kNvmlSuccess) {
    return nvml->Failed("count GPUs", error);
  }
  if (num_gpus == 0) {
    return absl::NotFoundError(absl::StrCat("find GPUs: the driver sees none; ", kAdvice));
  }
  std::vector<DeviceInfo> devices;
  for (unsigned i = 0; i < num_gpus; ++i) {
    NvmlDevice gpu = nullptr;
    char name_text[kNvmlTextBytes] = "", uuid_text[kNvmlTextBytes] = "";
    NvmlMemory bytes{};
    int error = nvml->by_index(i, &gpu);
    if (error == kNvmlSuccess) error = nvml->name(gpu, name_text, kNvmlTextBytes);
    if (error == kNvmlSuccess) error = nvml->uuid(gpu, uuid_text, kNvmlTextBytes);
    if (error == kNvmlSuccess) error = nvml->memory(gpu, &bytes);
    if (error != kNvmlSuccess) return nvml->Failed(absl::StrCat("read GPU ", i), error);
    devices.push_back(
        {static_cast<int>(i), name_text, static_cast<int64_t>(bytes.total), uuid_text});
  }
  return devices;
}

absl::StatusOr<std::vector<int>> BusyGpus(const std::vector<int>& indices,
                                          const std::string& library) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Nvml> nvml, Nvml::Load(library));
  std::vector<int> busy;
  for (const int index : indices) {
    NvmlDevice gpu = nullptr;
    unsigned num_processes = 0;
    int error = nvml->by_index(static_cast<unsigned>(index), &gpu);
    if (error == kNvmlSuccess) error = nvml->processes(gpu, &num_processes, nullptr);
    if (error == kNvmlInsufficientSize) {  // there are some: the list had no room
      busy.push_back(index);
    } else if (error != kNvmlSuccess) {
      return nvml->Failed(absl::StrCat("list the processes of GPU ", index), error);
    }
  }
  return busy;
}

}  // namespace switchyard
