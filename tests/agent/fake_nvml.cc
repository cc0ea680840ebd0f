// The functions of NVML that the agent uses, for two GPUs, or as SY_FAKE_NVML says: "none", or
// "broken" for a driver that does not answer.
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {
bool Is(const char* mode) {
  const char* value = std::getenv("SY_FAKE_NVML");
  return value != nullptr && std::strcmp(value, mode) == 0;
}
}  // namespace

extern "C" {

struct Memory {
  unsigned long long total, free, used;
};

int nvmlInit_v2() { return Is("broken") ? 9 : 0; }
int nvmlShutdown() { return 0; }
const char* nvmlErrorString(int) { return "Driver Not Loaded"; }
int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = Is("none") ? 0 : 2;
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  *device = reinterpret_cast<void*>(static_cast<size_t>(index + 1));
  return 0;
}
int nvmlDeviceGetName(void*, char* name, unsigned size) {
  std::snprintf(name, size, "NVIDIA H100 80GB HBM3");
  return 0;
}
int nvmlDeviceGetUUID(void* device, char* uuid, unsigned size) {
  std::snprintf(uuid, size, "GPU-%zu", reinterpret_cast<size_t>(device) - 1);
  return 0;
}
int nvmlDeviceGetMemoryInfo(void*, Memory* memory) {
  *memory = {80ull << 30, 79ull << 30, 1ull << 30};
  return 0;
}

}  // extern "C"
