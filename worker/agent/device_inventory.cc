#include "worker/agent/device_inventory.h"

#include <dlfcn.h>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "worker/agent/host_stats.h"

namespace switchyard {
namespace {

// The part of nvml.h that we use. NVML's functions are versioned by suffix and keep their ABI.
using NvmlDevice = void*;
struct NvmlMemory {
  unsigned long long total, free, used;
};
constexpr unsigned kNvmlTextBytes = 96;

constexpr const char* kAdvice = "give --cpu-ranks N to offer N CPU ranks instead";

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
  void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return absl::NotFoundError(absl::StrCat("find GPUs: the NVIDIA driver's ", library,
                                            " cannot be loaded (", ::dlerror(), "); ", kAdvice));
  }
  const absl::Cleanup close = [handle] { ::dlclose(handle); };
  const auto init = reinterpret_cast<int (*)()>(::dlsym(handle, "nvmlInit_v2"));
  const auto shutdown = reinterpret_cast<int (*)()>(::dlsym(handle, "nvmlShutdown"));
  const auto error_string =
      reinterpret_cast<const char* (*)(int)>(::dlsym(handle, "nvmlErrorString"));
  const auto count = reinterpret_cast<int (*)(unsigned*)>(::dlsym(handle, "nvmlDeviceGetCount_v2"));
  const auto by_index = reinterpret_cast<int (*)(unsigned, NvmlDevice*)>(
      ::dlsym(handle, "nvmlDeviceGetHandleByIndex_v2"));
  const auto name =
      reinterpret_cast<int (*)(NvmlDevice, char*, unsigned)>(::dlsym(handle, "nvmlDeviceGetName"));
  const auto uuid =
      reinterpret_cast<int (*)(NvmlDevice, char*, unsigned)>(::dlsym(handle, "nvmlDeviceGetUUID"));
  const auto memory = reinterpret_cast<int (*)(NvmlDevice, NvmlMemory*)>(
      ::dlsym(handle, "nvmlDeviceGetMemoryInfo"));
  if (!init || !shutdown || !error_string || !count || !by_index || !name || !uuid || !memory) {
    return absl::UnavailableError(
        absl::StrCat("find GPUs: ", library, " lacks a function of NVML; ", kAdvice));
  }
  const auto failed = [&](const char* what, int error) {
    return absl::UnavailableError(
        absl::StrCat("find GPUs: ", what, ": ", error_string(error), "; ", kAdvice));
  };
  if (const int error = init(); error != 0) return failed("start NVML", error);
  const absl::Cleanup stop = [shutdown] { shutdown(); };
  unsigned num_gpus = 0;
  if (const int error = count(&num_gpus); error != 0) return failed("count GPUs", error);
  if (num_gpus == 0) {
    return absl::NotFoundError(absl::StrCat("find GPUs: the driver sees none; ", kAdvice));
  }
  std::vector<DeviceInfo> devices;
  for (unsigned i = 0; i < num_gpus; ++i) {
    NvmlDevice gpu = nullptr;
    char name_text[kNvmlTextBytes] = "", uuid_text[kNvmlTextBytes] = "";
    NvmlMemory bytes{};
    int error = by_index(i, &gpu);
    if (error == 0) error = name(gpu, name_text, kNvmlTextBytes);
    if (error == 0) error = uuid(gpu, uuid_text, kNvmlTextBytes);
    if (error == 0) error = memory(gpu, &bytes);
    if (error != 0) return failed(absl::StrCat("read GPU ", i).c_str(), error);
    devices.push_back(
        {static_cast<int>(i), name_text, static_cast<int64_t>(bytes.total), uuid_text});
  }
  return devices;
}

}  // namespace switchyard
