#include "worker/trainer/stats.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <utility>

#include "worker/trainer/device.h"

namespace switchyard {

namespace {

// The bytes of a line "<name>: <n> kB" of a file of /proc.
std::optional<int64_t> ReadKilobytes(const char* path, const std::string& name) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind(name + ":", 0) != 0) continue;
    std::istringstream words(line.substr(name.size() + 1));
    int64_t kilobytes = 0;
    if (words >> kilobytes) return kilobytes * 1024;
  }
  return std::nullopt;
}

std::optional<int64_t> ReadNumber(const char* path) {
  std::ifstream file(path);
  int64_t number = 0;
  if (file >> number) return number;
  return std::nullopt;  // also "max"
}

}  // namespace

int64_t PeakHostMemoryBytes() { return ReadKilobytes("/proc/self/status", "VmHWM").value_or(0); }

int64_t AvailableHostMemoryBytes() {
  int64_t available =
      ReadKilobytes("/proc/meminfo", "MemAvailable").value_or(std::numeric_limits<int64_t>::max());
  // Of a container, which sees its own group as the root; version 2, then 1.
  for (const auto& [limit_path, used_path] :
       {std::pair("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        std::pair("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                  "/sys/fs/cgroup/memory/memory.usage_in_bytes")}) {
    const std::optional<int64_t> limit = ReadNumber(limit_path), used = ReadNumber(used_path);
    if (limit.has_value() && used.has_value()) available = std::min(available, *limit - *used);
  }
  return std::max<int64_t>(available, 0);
}

double ExpertLoadMaxOverMean(const at::Tensor& copies_LE) {
  double worst = 0;
  if (!copies_LE.defined()) return worst;
  for (int64_t layer = 0; layer < copies_LE.size(0); ++layer) {
    const at::Tensor copies_E = copies_LE[layer];
    const double total = static_cast<double>(copies_E.sum().item<int64_t>());
    if (total == 0) continue;
    const double mean = total / static_cast<double>(copies_E.numel());
    worst = std::max(worst, static_cast<double>(copies_E.max().item<int64_t>()) / mean);
  }
  return worst;
}

void PhaseTimer::Lap(const std::string& phase) {
  const absl::Duration now = clock_.Monotonic();
  seconds_[phase] += absl::ToDoubleSeconds(now - last_);
  last_ = now;
}

StepTimer::StepTimer(Clock& clock, at::Device device) : device_(device), host_(clock) {
  if (!device_.is_cpu()) marks_.emplace_back("", RecordEvent(device_, /*timing=*/true));
}

void StepTimer::Lap(const std::string& phase) {
  if (device_.is_cpu()) {
    host_.Lap(phase);
  } else {
    marks_.emplace_back(phase, RecordEvent(device_, /*timing=*/true));
  }
}

StepTimer::Times StepTimer::Read() const {
  if (device_.is_cpu()) return {host_.seconds(), host_.total_seconds()};
  Times times;
  marks_.back().second.synchronize();
  for (size_t i = 1; i < marks_.size(); ++i) {
    const double seconds = marks_[i - 1].second.elapsedTime(marks_[i].second) / 1e3;
    times.seconds[marks_[i].first] += seconds;
    times.total += seconds;
  }
  return times;
}

}  // namespace switchyard
