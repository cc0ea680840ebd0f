// The devices that this node offers: CPU slots, or GPUs found by NVML, which is loaded at run time
// so that the agent runs where there is no driver.
#ifndef SWITCHYARD_WORKER_AGENT_DEVICE_INVENTORY_H_
#define SWITCHYARD_WORKER_AGENT_DEVICE_INVENTORY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

struct DeviceInfo {
  int index = 0;     // as CUDA counts with CUDA_DEVICE_ORDER=PCI_BUS_ID
  std::string kind;  // "cpu", or the GPU's product name
  int64_t memory_bytes = 0;
  std::string uuid;

  bool is_cpu() const { return kind == "cpu"; }
};

// `num_ranks` slots that share the host's memory evenly. Precondition: num_ranks > 0.
std::vector<DeviceInfo> CpuDevices(int num_ranks);

// All GPUs of the machine. `library`: NVML's file name.
// Errors: NotFound: no driver or no GPU; the message says what to do. Unavailable: NVML failed.
absl::StatusOr<std::vector<DeviceInfo>> FindGpus(const std::string& library = "libnvidia-ml.so.1");

// Those of the GPUs `indices` on which some process has a context.
// Errors: as FindGpus.
absl::StatusOr<std::vector<int>> BusyGpus(const std::vector<int>& indices,
                                          const std::string& library = "libnvidia-ml.so.1");

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_DEVICE_INVENTORY_H_
