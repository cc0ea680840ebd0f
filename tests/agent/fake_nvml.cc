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

// As many as SY_FAKE_NVML_BUSY, a file, has bytes: for GPU 1.
int nvmlDeviceGetComputeRunningProcesses_v3(void* device, unsigned* count, void*) {
  const char* path = std::getenv("SY_FAKE_NVML_BUSY");
  FILE* file = path == nullptr ? nullptr : std::fopen(path, "r");
  *count = 0;
  if (file == nullptr) return 0;
  while (std::fgetc(file) != EOF) ++*count;
  std::fclose(file);
  if (reinterpret_cast<size_t>(device) != 2) *count = 0;
  return *count > 0 ? 7 : 0;  // INSUFFICIENT_SIZE
}

}  // extern "C"
